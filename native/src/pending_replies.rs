//! The replies that a stream owes, in the order of its messages.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::budget::Usage;
use crate::call_error::{CallError, CallResult};
use crate::charges::Reservation;

/// The step in bytes by which a stream's reservation for replies grows and shrinks.
const RESERVATION_STEP: usize = 16 << 10;

/// A result, and the id of its request.
pub type Reply = (CallResult, String);

struct Pending {
    result: oneshot::Receiver<CallResult>,
    images: usize,
    bytes: usize,
    id: String,
}

pub struct PendingReplies {
    queue: VecDeque<Pending>,
    images: usize,
    bytes: usize,
    /// At least `bytes`. Changed in steps, because a stream can have a million replies a second.
    reservation: Reservation,
}

impl PendingReplies {
    pub fn new(usage: Arc<Usage>) -> Self {
        Self { queue: VecDeque::new(), images: 0, bytes: 0, reservation: Reservation::new(usage, 0) }
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub const fn images(&self) -> usize {
        self.images
    }

    /// Adds a reply of about so many bytes.
    pub fn push(&mut self, result: oneshot::Receiver<CallResult>, images: usize, bytes: usize, id: String) {
        self.images += images;
        self.bytes += bytes;
        self.queue.push_back(Pending { result, images, bytes, id });
        if self.bytes > self.reservation.bytes() {
            self.reservation.set(self.bytes + RESERVATION_STEP);
        }
    }

    /// Waits for the oldest; never returns if there is none.
    pub async fn next(&mut self) -> Reply {
        let Some(first) = self.queue.front_mut() else { return pending().await };
        let result = (&mut first.result).await.unwrap_or(Err(CallError::ServerStopping));
        (result, self.pop())
    }

    /// The oldest, if it is ready.
    pub fn next_ready(&mut self) -> Option<Reply> {
        let result = self.queue.front_mut()?.result.try_recv().ok()?;
        Some((result, self.pop()))
    }

    fn pop(&mut self) -> String {
        let Some(Pending { images, bytes, id, .. }) = self.queue.pop_front() else { return String::new() };
        self.images -= images;
        self.bytes -= bytes;
        if self.queue.is_empty() || self.bytes + 2 * RESERVATION_STEP < self.reservation.bytes() {
            self.reservation.set(self.bytes);
        }
        id
    }
}
