//! The sending half of a stream's call, within the client's flow-control window.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::HeaderMap;
use tokio::sync::watch;

use crate::budget::Usage;
use crate::charges::{Charge, ReplyBuf};
use crate::drain::{wait_for_drain_write_timeout, Phase};
use crate::limits::sleep_until;
use crate::response::{response_headers, send_trailers_only};

/// Why a write stopped before its end.
pub enum WriteError {
    /// The client has reset the stream, or the connection has ended.
    Cancelled,
    /// The client did not read in time; `is_unsent` if no byte was sent, so that a status can follow.
    TimedOut { reason: WriteTimeout, is_unsent: bool },
}

pub enum WriteTimeout {
    Deadline,
    Drain,
}

/// Opens with the first write.
pub enum ResponseSink {
    Unopened(SendResponse<ReplyBuf>),
    Open(SendStream<ReplyBuf>),
}

impl ResponseSink {
    /// Writes as the client's window allows, until the deadline, or `DRAIN_WRITE_TIMEOUT` after a drain has started.
    pub async fn write(
        &mut self,
        out: BytesMut,
        usage: &Arc<Usage>,
        deadline: Option<Instant>,
        mut phase: watch::Receiver<Phase>,
    ) -> Result<(), WriteError> {
        let stream = self.open()?;
        let mut rest = out.freeze();
        let len = rest.len();
        while rest.has_remaining() {
            stream.reserve_capacity(rest.len());
            let capacity = match stream.capacity() {
                0 => {
                    let _charge = Charge::new(usage.clone(), rest.len());
                    let is_unsent = rest.len() == len;
                    let timed_out = |reason| WriteError::TimedOut { reason, is_unsent };
                    tokio::select! {
                        biased;
                        capacity = poll_fn(|cx| stream.poll_capacity(cx)) => {
                            capacity.and_then(Result::ok).ok_or(WriteError::Cancelled)?
                        }
                        () = sleep_until(deadline) => return Err(timed_out(WriteTimeout::Deadline)),
                        () = wait_for_drain_write_timeout(&mut phase) => return Err(timed_out(WriteTimeout::Drain)),
                    }
                }
                capacity => capacity,
            };
            let chunk = ReplyBuf::new(rest.split_to(capacity.min(rest.len())), usage.clone());
            stream.send_data(chunk, false).map_err(|_| WriteError::Cancelled)?;
        }
        Ok(())
    }

    fn open(&mut self) -> Result<&mut SendStream<ReplyBuf>, WriteError> {
        if let Self::Unopened(respond) = self {
            *self = Self::Open(respond.send_response(response_headers(), false).map_err(|_| WriteError::Cancelled)?);
        }
        match self {
            Self::Open(stream) => Ok(stream),
            Self::Unopened(_) => Err(WriteError::Cancelled),
        }
    }

    /// Ends the stream with these trailers.
    pub fn finish(self, trailers: HeaderMap) {
        match self {
            Self::Unopened(respond) => send_trailers_only(respond, trailers),
            Self::Open(mut stream) => drop(stream.send_trailers(trailers)),
        }
    }

    pub fn reset(self) {
        match self {
            Self::Unopened(mut respond) => respond.send_reset(Reason::CANCEL),
            Self::Open(mut stream) => stream.send_reset(Reason::CANCEL),
        }
    }

    /// Returns when the client resets the stream or its connection ends.
    pub async fn cancelled(&mut self) {
        match self {
            Self::Unopened(respond) => drop(poll_fn(|cx| respond.poll_reset(cx)).await),
            Self::Open(stream) => drop(poll_fn(|cx| stream.poll_reset(cx)).await),
        }
    }
}
