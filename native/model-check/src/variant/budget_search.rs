//! Every schedule of threads that charge bytes, release them and wait for capacity.

use super::*;
use crate::charges::{Charge, IncompleteMessage, Reservation, OPEN_CALL};

use loom::future::block_on;
use loom::thread;

const MB: usize = 1 << 20;

fn check_empty(budget: &Budget) {
    for (name, counted) in [
        ("reply_bytes", &*budget.reply_bytes),
        ("incomplete", &*budget.incomplete),
        ("incomplete_unauthenticated", &*budget.incomplete_unauthenticated),
        ("closing", &budget.closing),
    ] {
        assert_eq!(counted.load(Relaxed), 0, "{name}: everything is released");
    }
    assert!(budget.usages().is_empty());
}

/// A run on the model's thread charges a reply, the I/O thread sends it and another, and no charge remains.
pub fn every_charge_is_released() {
    let budget = Budget::new(1000);
    let connection = budget.register(true);
    let usage = connection.0.clone();
    let model = thread::spawn(move || {
        let mut reservation = Reservation::new(usage.clone(), 2 * MB);
        let charge = Charge::new(usage.clone(), MB);
        assert!(usage.reply_bytes() >= 3 * MB && usage.unsent() >= MB);
        reservation.set(MB);
        charge
    });
    let mut message = IncompleteMessage::new(connection.0.clone());
    message.set(OPEN_CALL).unwrap();
    drop(Charge::new(connection.0.clone(), MB));
    let charge = model.join().unwrap();
    let usage = &connection.0;
    assert_eq!((usage.reply_bytes(), usage.unsent(), budget.reply_bytes.load(Relaxed)), (MB, MB, MB), "one charge");
    drop((charge, message));
    assert_eq!((usage.reply_bytes(), usage.reserved.load(Relaxed), usage.incomplete.load(Relaxed)), (0, 0, 0));
    drop(connection);
    check_empty(&budget);
}

/// A task that waits for capacity is woken when there is some, also during other releases.
pub fn a_waiting_call_gets_its_capacity() {
    let connection = Budget::new(1000).register(true);
    let charges = [12 * MB, 13 * MB].map(|bytes| Charge::new(connection.0.clone(), bytes));
    let threads = charges.map(|charge| thread::spawn(move || drop(charge)));
    block_on(connection.0.wait_for_capacity(5 * MB));
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(connection.0.reply_bytes(), 0);
}

/// Two threads that find the process at its limit close one connection. When it has ended, the next can be closed.
pub fn one_connection_is_closed_at_a_time() {
    let budget = Budget::new(1000);
    let [first, second, large, larger] = [(); 4].map(|()| budget.register(true));
    let [a, b, c, d] = [(&first, 1), (&second, 2), (&large, 40), (&larger, 60)]
        .map(|(connection, mb)| Charge::new(connection.0.clone(), mb * MB));
    let usage = second.0.clone();
    let other = thread::spawn(move || usage.check_replies().unwrap());
    first.0.check_replies().unwrap();
    other.join().unwrap();
    assert_eq!((budget.shed.get(), budget.closing.load(Relaxed)), (1, 1), "one at a time");
    drop((d, larger));
    assert_eq!(budget.closing.load(Relaxed), 0);
    drop((a, b, c, first, second, large));
    check_empty(&budget);
}

/// A connection ends by itself while it is chosen to be closed: its count is removed, or no other could be closed.
pub fn a_connection_that_ends_while_it_is_closed_is_not_counted() {
    let budget = Budget::new(1000);
    let [requesting, large] = [(); 2].map(|()| budget.register(true));
    let charge = Charge::new(requesting.0.clone(), 50 * MB);
    let large_charge = Charge::new(large.0.clone(), 60 * MB);
    let ending = thread::spawn(move || drop((large_charge, large)));
    drop(requesting.0.check_replies());
    ending.join().unwrap();
    drop((charge, requesting));
    check_empty(&budget);
}
