//! Every schedule of those who put requests in line and those who take them out.

use super::*;
use std::sync::Mutex as Unsearched;

use loom::future::block_on;
use loom::thread;

use crate::decode::{Form, Serves};
use crate::budget::{Budget, Opened, Unsent};
use crate::server_state::{Core, Host, Route};
use crate::inline::run_small;
use crate::runner::Runner;
use crate::prelude::{Py, PyAny, Python};
use crate::responder::Call;
use crate::model_version::Current;
use crate::server::Connection;
use crate::sync::set_clock;

/// A request of so many images is large.
const LARGE: usize = 2;
fn runs() -> Runner {
    Runner { fails: false }
}

/// A server with one connection.
struct World {
    core: Arc<Core>,
    route: Arc<Route>,
    served: Arc<Current<Served>>,
    opened: Opened,
    connection: Arc<Connection<Unsent>>,
    /// What Python's callers are called back on.
    callbacks: Unsearched<Vec<Py<PyAny>>>,
}

impl World {
    fn new(max_queued_images: usize) -> Arc<Self> {
        let budget = Budget::new(1000);
        let opened = budget.open(true);
        let core = Core {
            line: Line::new(max_queued_images, 4, LARGE - 1),
            model: metrics::Model::new(&[1.0], &[1.0], &[1.0], &[1.0]),
            budget,
            host: Host,
        };
        Arc::new(Self {
            core: Arc::new(core),
            route: Arc::new(Route { path: String::new(), counts: metrics::Rpc::new(&[1.0]) }),
            served: Arc::new(Current::new(served(Py::new()))),
            opened,
            connection: Connection::new(),
            callbacks: Unsearched::default(),
        })
    }

    fn item(&self, images: usize, is_late: bool, reply: Reply) -> Item {
        let (message, span) = (Message::default(), Span { start: 0, len: 0 });
        let deadline = is_late.then(now);
        Item { message, span, images, since: now(), deadline, served: self.served.get(), reply }
    }

    /// A call from outside, put in line by the thread that reads.
    fn call(&self, images: usize, is_late: bool) {
        let (core, route) = (self.core.clone(), self.route.clone());
        let call = Call::begin(core, route, self.opened.0.clone(), None, Instant::now(), None);
        let form = Form::Digits { hidden: false };
        let reply = Reply::Unary { respond: self.connection.call(), call, form, arrived: Instant::now() };
        self.core.line.push(self.item(images, is_late, reply), &self.core.model);
    }

    /// A handler's request, put in line with the interpreter held: `Server.submit`.
    fn submit(&self, images: usize, is_late: bool) {
        Python::attach(|py| {
            let callback = Py::new();
            self.callbacks.lock().unwrap().push(callback.clone_ref(py));
            self.core.line.push(self.item(images, is_late, Reply::Python(callback)), &self.core.model);
        });
    }

    /// The thread that reads: until no call is open, which is when a drain lets it end.
    fn read(&self) {
        block_on(async {
            tokio::select! {
                biased;
                () = self.connection.ended() => {}
                () = run_small(self.core.clone(), runs()) => {}
            }
        });
    }

    /// `Server.run_model`.
    fn run_large(&self) {
        let mut runner = runs();
        while let Some(batch) = self.core.line.large_batch(&self.core.model) {
            runner.run(batch);
        }
    }

    /// Everybody was answered once, and nothing is left.
    fn check(&self) {
        let ends = self.connection.ends();
        assert_eq!(ends, vec![1; ends.len()], "answered once");
        for callback in self.callbacks.lock().unwrap().iter() {
            assert_eq!(callback.calls().len(), 1, "called back once: {:?}", callback.calls());
        }
        assert_eq!(self.core.line.images(), 0, "nobody waits");
        assert_eq!(self.route.counts.started.get() as usize, ends.len());
        let ended: u64 = self.route.counts.handled.iter().map(metrics::Counter::get).sum();
        assert_eq!(ended as usize, ends.len(), "counted once");
        self.connection.read();
        assert_eq!(self.opened.0.unsent(), 0, "nothing is held");
    }

    /// How many the line refused.
    fn refused(&self) -> u64 {
        self.core.model.overloaded.get()
    }
}

fn served(model: Py<PyAny>) -> Served {
    Served::new(model, Serves { name: String::new(), version: String::new(), max_batch_size: 4 })
}

fn start(world: &Arc<World>, f: impl FnOnce(&World) + 'static) -> thread::JoinHandle<()> {
    let world = world.clone();
    thread::spawn(move || f(&world))
}

/// A late request is told of by Python while Python puts another into that lane.
pub fn python_asks_while_a_late_call_is_told() {
    let world = World::new(8);
    world.call(1, true);
    let python = start(&world, |world| world.submit(1, false));
    runs().run(world.core.line.small_batch(&world.core.model));
    python.join().unwrap();
    runs().run(world.core.line.small_batch(&world.core.model));
    world.check();
}

/// The same in the lane of the large ones, and the drain behind it.
pub fn python_asks_while_a_late_large_call_is_told() {
    let world = World::new(8);
    world.call(LARGE, true);
    let model = start(&world, World::run_large);
    world.submit(LARGE, false);
    world.core.line.close();
    model.join().unwrap();
    world.check();
}

/// Calls of both sizes and a handler's request; then the drain.
pub fn all_are_answered_and_the_drain_ends() {
    let world = World::new(8);
    let model = start(&world, World::run_large);
    let python = start(&world, |world| world.submit(LARGE, false));
    world.call(1, false);
    world.call(LARGE, false);
    world.read();
    python.join().unwrap();
    world.core.line.close();
    model.join().unwrap();
    world.check();
}

/// While nothing small comes the thread that reads takes large calls too, and hands over what it has no time for.
pub fn large_calls_are_shared_with_the_thread_that_reads() {
    let world = World::new(16);
    set_clock(QUIET * 2);
    world.core.line.took(nanos(SPARE) / LARGE as u64, 1); // it has time for one
    let model = start(&world, World::run_large);
    world.call(LARGE, false);
    world.call(LARGE + 1, false);
    world.read();
    world.core.line.close();
    model.join().unwrap();
    world.check();
}

/// Two threads put in at a time what the bound has room for once.
pub fn the_bound_holds_for_both_lanes() {
    let world = World::new(3);
    world.call(1, false);
    let python = start(&world, |world| world.submit(LARGE, false));
    world.call(1, false);
    python.join().unwrap();
    assert!(world.core.line.images() <= 3, "{} images wait; at most 3 may", world.core.line.images());
    assert_eq!(world.refused(), 1);
    world.core.line.close();
    runs().run(world.core.line.small_batch(&world.core.model));
    world.run_large();
    world.check();
}

/// A caller leaves at any time: it gets an answer or none, and is counted once.
pub fn a_caller_who_leaves_is_counted_once() {
    let world = World::new(8);
    world.call(LARGE, false);
    let connection = world.connection.clone();
    let peer = thread::spawn(move || {
        connection.reset();
        connection.read();
    });
    world.core.line.close();
    world.run_large();
    peer.join().unwrap();
    assert_eq!(world.route.counts.handled.iter().map(metrics::Counter::get).sum::<u64>(), 1);
    assert_eq!(world.core.line.images(), 0);
    world.connection.read();
    assert_eq!(world.opened.0.unsent(), 0);
}

/// A failed run holds the interpreter while it answers; the peer reads, and Python asks for more.
pub fn a_failed_run_fails_its_callers() {
    let world = World::new(8);
    world.call(1, false);
    let python = start(&world, |world| world.submit(1, false));
    let connection = world.connection.clone();
    let peer = thread::spawn(move || connection.read());
    let mut runner = Runner { fails: true };
    runner.run(world.core.line.small_batch(&world.core.model));
    python.join().unwrap();
    peer.join().unwrap();
    runner.run(world.core.line.small_batch(&world.core.model));
    world.check();
}

/// Another model comes while requests do: each is answered by the one that it came under, and the old one is freed.
pub fn a_replaced_model_is_freed_after_its_last_request() {
    let world = World::new(8);
    let (first, second) = (Py::new(), Py::new());
    world.served.set(Python::attach(|py| served(first.clone_ref(py))));
    let reload = {
        let (world, second) = (world.clone(), Python::attach(|py| second.clone_ref(py)));
        thread::spawn(move || Python::attach(|_| world.served.set(served(second))))
    };
    world.call(1, false);
    world.call(1, true);
    loop {
        let batch = world.core.line.small_batch(&world.core.model);
        if batch.is_empty() {
            break;
        }
        runs().run(batch);
    }
    reload.join().unwrap();
    assert_eq!((first.holders(), second.holders()), (1, 2));
    world.check();
}
