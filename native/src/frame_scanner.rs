//! Finds the frames in the bytes of a connection, and limits a client's pings.

use std::time::{Duration, Instant};

const MAX_PING_STRIKES: u32 = 2;
/// Length of the client's preface, before its first frame.
pub const PREFACE: usize = 24;
pub const FRAME_HEADER: usize = 9;
/// The type of a frame with the headers or the trailers of a call.
pub const HEADERS: u8 = 1;

/// The type, the flags and the length of a frame, by its header.
pub fn parse_header(header: [u8; FRAME_HEADER]) -> (u8, u8, usize) {
    let [a, b, c, kind, flags, ..] = header;
    (kind, flags, usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c))
}

/// Limits a client's pings, by the rules of gRPC's C core.
#[derive(Debug)]
pub struct PingPolicy {
    /// The minimum between two pings, unless something was sent to the client between them.
    interval: Duration,
    last: Option<Instant>,
    strikes: u32,
}

impl PingPolicy {
    pub fn new(interval: Duration) -> Self {
        Self { interval, last: None, strikes: 0 }
    }

    /// Counts a ping; returns whether it is one too many.
    pub fn record(&mut self, now: Instant) -> bool {
        let is_early = self.last.replace(now).is_some_and(|last| now - last < self.interval);
        self.strikes += u32::from(is_early);
        is_early && self.strikes > MAX_PING_STRIKES
    }

    pub fn reset(&mut self) {
        (self.last, self.strikes) = (None, 0);
    }
}

/// Finds the frames of one direction.
#[derive(Debug, Default)]
pub struct FrameScanner {
    skip: usize,
    header: [u8; FRAME_HEADER],
    len: usize,
}

impl FrameScanner {
    /// For the bytes of a client, which begin with the preface.
    pub fn after_preface() -> Self {
        Self { skip: PREFACE, ..Self::default() }
    }

    /// Scans the next bytes; calls `on_frame` with each frame's type, flags and length.
    pub fn scan(&mut self, mut bytes: &[u8], mut on_frame: impl FnMut(u8, u8, usize)) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let (header, rest) = bytes.split_at(bytes.len().min(FRAME_HEADER - self.len));
            self.header[self.len..][..header.len()].copy_from_slice(header);
            self.len += header.len();
            if self.len < FRAME_HEADER {
                return;
            }
            let (kind, flags, len) = parse_header(self.header);
            (self.skip, self.len) = (len, 0);
            bytes = rest;
            on_frame(kind, flags, len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_frame_is_found_with_any_chunks(
            frames in prop::collection::vec((any::<u8>(), any::<u8>(), 0..70_000usize), 0..8),
            size in 1..20_000usize,
        ) {
            let mut bytes = Vec::new();
            for (kind, flags, len) in &frames {
                bytes.extend_from_slice(&u32::try_from(*len).unwrap().to_be_bytes()[1..]);
                bytes.extend_from_slice(&[*kind, *flags, 0, 0, 0, 1]);
                bytes.resize(bytes.len() + len, 0xaa);
            }
            let (mut found, mut scanner) = (Vec::new(), FrameScanner::default());
            for chunk in bytes.chunks(size) {
                scanner.scan(chunk, |kind, flags, _| found.push((kind, flags)));
            }
            let expected: Vec<_> = frames.iter().map(|(kind, flags, _)| (*kind, *flags)).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn frequent_pings_are_too_many_unless_something_is_sent_between_them() {
        let (mut pings, start) = (PingPolicy::new(Duration::from_secs(10)), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!([0, 10, 20, 30, 40].iter().all(|seconds| !pings.record(at(*seconds))));
        assert_eq!([41, 42, 43].map(|seconds| pings.record(at(seconds))), [false, false, true]);
        pings.reset();
        assert_eq!([44, 45, 46, 47].map(|seconds| pings.record(at(seconds))), [false, false, false, true]);
    }
}
