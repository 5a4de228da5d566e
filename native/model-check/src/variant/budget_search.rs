//! Every schedule of those who hold bytes, let go of them and wait for room.

use super::*;

use loom::future::block_on;
use loom::thread;

const MB: usize = 1 << 20;

fn check_empty(budget: &Budget) {
    for (name, counted) in [
        ("held", &budget.held),
        ("unfinished", &budget.unfinished),
        ("strangers", &budget.strangers),
        ("ending", &budget.ending),
    ] {
        assert_eq!(counted.load(Relaxed), 0, "{name}: all is given back");
    }
    assert!(budget.usages().is_empty());
}

/// A run on the model's thread holds a reply, the thread that reads sends it and another, and nothing remains.
pub fn all_that_is_held_is_given_back() {
    let budget = Budget::new(1000);
    let opened = budget.open(true);
    let usage = opened.0.clone();
    let model = thread::spawn(move || {
        let mut reserved = Reserved::new(usage.clone(), 2 * MB);
        let held = Hold::new(usage.clone(), MB);
        assert!(usage.held() >= 3 * MB && usage.unsent() >= MB);
        reserved.set(MB);
        held
    });
    let mut unfinished = Unfinished::new(opened.0.clone());
    unfinished.set(CALL).unwrap();
    drop(Hold::new(opened.0.clone(), MB));
    let held = model.join().unwrap();
    assert_eq!((opened.0.held(), opened.0.unsent(), budget.held.load(Relaxed)), (MB, MB, MB), "of what is held");
    drop((held, unfinished));
    assert_eq!((opened.0.held(), opened.0.reserved.load(Relaxed), opened.0.unfinished.load(Relaxed)), (0, 0, 0));
    drop(opened);
    check_empty(&budget);
}

/// Whoever waits for room is woken when there is some, whatever is let go of at a time.
pub fn who_waits_for_room_gets_it() {
    let opened = Budget::new(1000).open(true);
    let held = [12 * MB, 13 * MB].map(|bytes| Hold::new(opened.0.clone(), bytes));
    let threads = held.map(|held| thread::spawn(move || drop(held)));
    block_on(opened.0.room(5 * MB));
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(opened.0.held(), 0);
}

/// Two that find the process full at a time end one connection, not two; and when it has gone the next may be ended.
pub fn one_connection_is_ended_at_a_time() {
    let budget = Budget::new(1000);
    let [asks, asks_too, large, larger] = [(); 4].map(|()| budget.open(true));
    let [a, b, c, d] = [(&asks, 1), (&asks_too, 2), (&large, 40), (&larger, 60)]
        .map(|(opened, mb)| Hold::new(opened.0.clone(), mb * MB));
    let usage = asks_too.0.clone();
    let other = thread::spawn(move || usage.check().unwrap());
    asks.0.check().unwrap();
    other.join().unwrap();
    assert_eq!((budget.shed.get(), budget.ending.load(Relaxed)), (1, 1), "one at a time");
    drop((d, larger));
    assert_eq!(budget.ending.load(Relaxed), 0);
    drop((a, b, c, asks, asks_too, large));
    check_empty(&budget);
}

/// A connection ends by itself while another has it ended: no count of it stays, or nobody could be ended any more.
pub fn who_leaves_while_it_is_ended_leaves_nothing() {
    let budget = Budget::new(1000);
    let [asks, large] = [(); 2].map(|()| budget.open(true));
    let (mine, its) = (Hold::new(asks.0.clone(), 50 * MB), Hold::new(large.0.clone(), 60 * MB));
    let leaves = thread::spawn(move || drop((its, large)));
    drop(asks.0.check());
    leaves.join().unwrap();
    drop((mine, asks));
    check_empty(&budget);
}
