//! Every schedule of threads that queue requests and dequeue them.

use super::*;
use std::sync::{Arc, Mutex as Unsearched};

use loom::future::block_on;
use loom::thread;

use crate::budget::{Budget, Registration};
use crate::call::Call;
use crate::charges::ReplyBuf;
use crate::inference::{ModelSpec, ResponseFormat};
use crate::inline::run_inline_batches;
use crate::histogram::Counter;
use crate::message::{Message, Span};
use crate::metrics::RpcMetrics;
use crate::model_version::ModelVersion;
use crate::pixels::Pixels;
use crate::prelude::{Py, PyAny, Python};
use crate::python_host::PythonHost;
use crate::responder::{Reply, Responder};
use crate::route::{Route, RpcKind};
use crate::runner::Runner;
use crate::server::Connection;
use crate::server_state::ServerState;
use crate::swap::Swap;
use crate::sync::set_clock;

/// The images of a large request.
const LARGE: usize = 2;

fn runner() -> Runner {
    Runner { fails: false }
}

/// One I/O thread of a server, with one connection.
struct World {
    state: Arc<ServerState>,
    route: Arc<Route>,
    model: Arc<Swap<ModelVersion>>,
    registration: Registration,
    connection: Arc<Connection<ReplyBuf>>,
    /// The pending predictions of Python handlers.
    pending: Unsearched<Vec<Py<PyAny>>>,
}

impl World {
    fn new(max_queued_images: usize) -> Arc<Self> {
        let [world] = Self::of_threads(max_queued_images);
        world
    }

    /// Several I/O threads of one server.
    fn of_threads<const N: usize>(max_queued_images: usize) -> [Arc<Self>; N] {
        let queue = Arc::new(BatchQueue::new(N, max_queued_images, 4, LARGE - 1));
        let (budget, model) = (Budget::new(1000), Py::new());
        std::array::from_fn(|io_thread| Self::of_thread(io_thread, &queue, &budget, &model))
    }

    fn of_thread(io_thread: usize, queue: &Arc<BatchQueue>, budget: &Arc<Budget>, model: &Py<PyAny>) -> Arc<Self> {
        let registration = budget.register(true);
        let state = ServerState {
            io_thread,
            queue: queue.clone(),
            model_metrics: ModelMetrics::new(&[1.0], &[1.0], &[1.0], &[1.0]),
            budget: budget.clone(),
            host: Arc::new(PythonHost),
        };
        let model = Python::attach(|py| model.clone_ref(py));
        let route = Route {
            path: String::new(),
            kind: RpcKind::Predict,
            needs_token: false,
            max_message_bytes: 1000,
            reply_bytes_per_request_byte: 1,
            metrics: RpcMetrics::new(&[1.0]),
        };
        Arc::new(Self {
            state: Arc::new(state),
            route: Arc::new(route),
            model: Arc::new(Swap::new(model_version(model))),
            registration,
            connection: Connection::new(),
            pending: Unsearched::default(),
        })
    }

    fn queue(&self) -> &BatchQueue {
        &self.state.queue
    }

    fn push(&self, images: usize, is_expired: bool, responder: Responder) {
        let pixels = Pixels::Message(Message::default(), Span { start: 0, len: 0 });
        let deadline = is_expired.then(now);
        let (enqueued_at, model) = (now(), self.model.load());
        let entry = Entry { pixels, images, enqueued_at, deadline, model, responder };
        self.queue().push(self.state.io_thread, entry, &self.state.model_metrics);
    }

    /// A client's call, queued by the I/O thread.
    fn call(&self, images: usize, is_expired: bool) {
        let (host, route, usage) = (self.state.host.clone(), self.route.clone(), self.registration.0.clone());
        let call = Call::start(host, route, usage, None, Instant::now(), None);
        let format = ResponseFormat::Digits { hidden_layers: false };
        let respond = self.connection.call();
        let reply = Reply { format, placed: Vec::new(), received_at: Instant::now() };
        self.push(images, is_expired, Responder::Unary { respond, call, reply });
    }

    /// A Python handler's request, queued with the interpreter held: `Server.submit`.
    fn submit(&self, images: usize, is_expired: bool) {
        Python::attach(|py| {
            let pending = Py::new();
            self.pending.lock().unwrap().push(pending.clone_ref(py));
            self.push(images, is_expired, Responder::Python(pending));
        });
    }

    fn small_batch(&self) -> Vec<Entry> {
        self.queue().small_batch(self.state.io_thread, &self.state.model_metrics)
    }

    /// The I/O thread, until no call is open: then a drain lets it end.
    fn run_io(&self) {
        block_on(async {
            tokio::select! {
                biased;
                () = self.connection.ended() => {}
                () = run_inline_batches(self.state.clone(), runner()) => {}
            }
        });
    }

    /// `Server.run_large_batches`.
    fn run_large(&self) {
        let mut runner = runner();
        while let Some(batch) = self.queue().large_batch(&self.state.model_metrics) {
            runner.run(batch);
        }
    }

    /// Every request was answered once, and the queue is empty.
    fn check(&self) {
        let ends = self.connection.ends();
        assert_eq!(ends, vec![1; ends.len()], "answered once");
        for pending in self.pending.lock().unwrap().iter() {
            assert_eq!(pending.calls().len(), 1, "completed once: {:?}", pending.calls());
        }
        assert_eq!(self.queue().queued_images(), 0, "the queue is empty");
        assert_eq!(self.route.metrics.started.get() as usize, ends.len());
        assert_eq!(self.handled() as usize, ends.len(), "counted once");
        self.connection.read();
        assert_eq!(self.registration.0.unsent(), 0, "nothing is charged");
    }

    /// Calls that have ended.
    fn handled(&self) -> u64 {
        self.route.metrics.handled.iter().map(Counter::get).sum()
    }
}

fn model_version(model: Py<PyAny>) -> ModelVersion {
    ModelVersion::new(model, ModelSpec { name: String::new(), version: String::new(), max_batch_size: 4 })
}

fn spawn(world: &Arc<World>, f: impl FnOnce(&World) + 'static) -> thread::JoinHandle<()> {
    let world = world.clone();
    thread::spawn(move || f(&world))
}

/// An expired request is failed, which calls Python, while Python queues another one in the same lane.
pub fn python_submits_while_an_expired_call_is_failed() {
    let world = World::new(8);
    world.call(1, true);
    let python = spawn(&world, |world| world.submit(1, false));
    runner().run(world.small_batch());
    python.join().unwrap();
    runner().run(world.small_batch());
    world.check();
}

/// The same in the lane of large requests, and then the drain.
pub fn python_submits_while_an_expired_large_call_is_failed() {
    let world = World::new(8);
    world.call(LARGE, true);
    let model = spawn(&world, World::run_large);
    world.submit(LARGE, false);
    world.queue().close();
    model.join().unwrap();
    world.check();
}

/// Calls of both sizes and a handler's request; then the drain.
pub fn all_are_answered_and_the_drain_ends() {
    let world = World::new(8);
    let model = spawn(&world, World::run_large);
    let python = spawn(&world, |world| world.submit(LARGE, false));
    world.call(1, false);
    world.call(LARGE, false);
    world.run_io();
    python.join().unwrap();
    world.queue().close();
    model.join().unwrap();
    world.check();
}

/// While no small requests arrive, the I/O thread runs large ones, and hands over those that it has no time for.
pub fn large_calls_are_shared_with_the_io_thread() {
    let world = World::new(16);
    set_clock(IDLE_AFTER * 2);
    world.queue().record_run(nanos(INLINE_BUDGET) / LARGE as u64, 1); // it has time for one
    let model = spawn(&world, World::run_large);
    world.call(LARGE, false);
    world.call(LARGE + 1, false);
    world.run_io();
    world.queue().close();
    model.join().unwrap();
    world.check();
}

/// Two threads concurrently queue a request of which the limit allows one.
pub fn the_limit_holds_for_both_lanes() {
    let world = World::new(3);
    world.call(1, false);
    let python = spawn(&world, |world| world.submit(LARGE, false));
    world.call(1, false);
    python.join().unwrap();
    let queued = world.queue().queued_images();
    assert!(queued <= 3, "{queued} images are queued; at most 3 may be");
    assert_eq!(world.state.model_metrics.overloaded.get(), 1);
    world.queue().close();
    runner().run(world.small_batch());
    world.run_large();
    world.check();
}

/// Two I/O threads concurrently queue a request, each in its own lane, and the limit allows one.
pub fn the_limit_holds_for_two_io_threads() {
    let [first, second] = World::of_threads(3);
    first.call(1, false);
    second.call(1, false);
    let other = spawn(&second, |second| second.call(1, false));
    first.call(1, false);
    other.join().unwrap();
    let queued = first.queue().queued_images();
    assert_eq!(queued, 3, "{queued} images are queued; at most 3 may be");
    for world in [first, second] {
        runner().run(world.small_batch());
        assert_eq!(world.connection.ends(), [1, 1]);
    }
}

/// Two I/O threads without small requests: each runs the large ones of either, and a model thread those that are left.
pub fn two_io_threads_share_the_large_lane() {
    let [first, second] = World::of_threads(16);
    set_clock(IDLE_AFTER * 2);
    first.queue().record_run(nanos(INLINE_BUDGET) / LARGE as u64, 1); // each has time for one
    first.call(LARGE, false);
    let other = spawn(&second, |second| {
        second.call(LARGE, false);
        second.run_io();
    });
    first.run_io();
    other.join().unwrap();
    first.queue().close();
    first.run_large();
    second.check();
    first.check();
}

/// Small and large calls on two I/O threads, and two model threads; then the drain.
pub fn two_io_threads_and_two_model_threads_end_with_the_drain() {
    let [first, second] = World::of_threads(16);
    let models = [spawn(&first, World::run_large), spawn(&second, World::run_large)];
    first.call(LARGE, false);
    second.call(LARGE, false);
    first.queue().close();
    for model in models {
        model.join().unwrap();
    }
    first.check();
    second.check();
}

/// A model is replaced on one I/O thread after the other: a run has the requests of both threads, but of one model.
pub fn two_io_threads_share_a_run_of_one_model() {
    let [first, second] = World::of_threads(16);
    first.call(LARGE, false);
    let reload = spawn(&second, |second| {
        Python::attach(|_| second.model.store(model_version(Py::new())));
        second.call(LARGE, false);
    });
    second.call(LARGE, false);
    reload.join().unwrap();
    first.queue().close();
    first.run_large();
    first.check();
    second.check();
}

/// A client cancels at any time: its call is answered or not, and counted once.
pub fn a_cancelled_call_is_counted_once() {
    let world = World::new(8);
    world.call(LARGE, false);
    let connection = world.connection.clone();
    let peer = thread::spawn(move || {
        connection.reset();
        connection.read();
    });
    world.queue().close();
    world.run_large();
    peer.join().unwrap();
    assert_eq!(world.handled(), 1);
    assert_eq!(world.queue().queued_images(), 0);
    world.connection.read();
    assert_eq!(world.registration.0.unsent(), 0);
}

/// A failed run holds the interpreter while it fails its requests; the peer reads, and Python submits another.
pub fn a_failed_run_fails_its_requests() {
    let world = World::new(8);
    world.call(1, false);
    let python = spawn(&world, |world| world.submit(1, false));
    let connection = world.connection.clone();
    let peer = thread::spawn(move || connection.read());
    let mut runner = Runner { fails: true };
    runner.run(world.small_batch());
    python.join().unwrap();
    peer.join().unwrap();
    runner.run(world.small_batch());
    world.check();
}

/// The model is replaced while requests arrive: each is answered by the one that it arrived under, and the old one is
/// freed.
pub fn a_replaced_model_is_freed_after_its_last_request() {
    let world = World::new(8);
    let (first, second) = (Py::new(), Py::new());
    world.model.store(Python::attach(|py| model_version(first.clone_ref(py))));
    let reload = {
        let (world, second) = (world.clone(), Python::attach(|py| second.clone_ref(py)));
        thread::spawn(move || Python::attach(|_| world.model.store(model_version(second))))
    };
    world.call(1, false);
    world.call(1, true);
    loop {
        let batch = world.small_batch();
        if batch.is_empty() {
            break;
        }
        runner().run(batch);
    }
    reload.join().unwrap();
    assert_eq!((first.holders(), second.holders()), (1, 2));
    world.check();
}
