//! The stand-in of h2: one lock for each connection, taken by every operation on a stream.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderMap, Response};
use loom::sync::Mutex;

use crate::sync::Notify;

#[derive(Debug)]
pub struct Error;

/// A connection that records the ends of its streams. `B` is an unsent message, which the peer takes with `read`.
pub struct Connection<B> {
    streams: Mutex<Streams<B>>,
    ended: Notify,
}

struct Streams<B> {
    unsent: VecDeque<B>,
    heads: Vec<usize>,
    ends: Vec<usize>,
    open: usize,
    is_reset: bool,
}

impl<B> Connection<B> {
    pub fn new() -> Arc<Self> {
        let streams =
            Streams { unsent: VecDeque::new(), heads: Vec::new(), ends: Vec::new(), open: 0, is_reset: false };
        Arc::new(Self { streams: Mutex::new(streams), ended: Notify::new() })
    }

    pub fn call(self: &Arc<Self>) -> SendResponse<B> {
        let mut streams = self.streams.lock().unwrap();
        streams.open += 1;
        streams.heads.push(0);
        streams.ends.push(0);
        SendResponse { connection: self.clone(), id: streams.ends.len() - 1 }
    }

    /// The peer takes all unsent messages.
    pub fn read(&self) {
        self.streams.lock().unwrap().unsent.clear();
    }

    /// The peer resets its streams.
    pub fn reset(&self) {
        self.streams.lock().unwrap().is_reset = true;
    }

    /// How often each stream was ended.
    pub fn ends(&self) -> Vec<usize> {
        self.streams.lock().unwrap().ends.clone()
    }

    /// Waits until no call is open.
    pub async fn ended(&self) {
        while self.streams.lock().unwrap().open > 0 {
            self.ended.notified().await;
        }
    }

    fn end(&self, id: usize) {
        self.streams.lock().unwrap().ends[id] += 1;
    }

    fn release(&self) {
        let mut streams = self.streams.lock().unwrap();
        streams.open -= 1;
        let is_last = streams.open == 0;
        drop(streams);
        if is_last {
            self.ended.notify_one();
        }
    }
}

/// A call without an answer so far.
pub struct SendResponse<B> {
    connection: Arc<Connection<B>>,
    id: usize,
}

pub struct SendStream<B> {
    connection: Arc<Connection<B>>,
    id: usize,
}

impl<B> SendResponse<B> {
    pub fn poll_reset(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.connection.streams.lock().unwrap().is_reset {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }

    pub fn send_response(&mut self, _: Response<()>, is_end: bool) -> Result<SendStream<B>, Error> {
        let mut streams = self.connection.streams.lock().unwrap();
        if streams.is_reset {
            return Err(Error);
        }
        streams.heads[self.id] += 1;
        assert_eq!(streams.heads[self.id], 1, "a call is answered once");
        drop(streams);
        if is_end {
            self.connection.end(self.id);
        }
        Ok(SendStream { connection: self.connection.clone(), id: self.id })
    }
}

impl<B> SendStream<B> {
    pub fn send_data(&mut self, data: B, _: bool) -> Result<(), Error> {
        self.connection.streams.lock().unwrap().unsent.push_back(data);
        Ok(())
    }

    pub fn send_trailers(&mut self, _: HeaderMap) -> Result<(), Error> {
        self.connection.end(self.id);
        Ok(())
    }
}

impl<B> Drop for SendResponse<B> {
    fn drop(&mut self) {
        self.connection.release();
    }
}
