//! How many requests of each kind the kernel has sent, which is what an operation costs in round trips, and how long they
//! took. Counting is a few atomic additions and two looks at the clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// As the adapter names them. The last one stands for whatever has no name here.
const KINDS: [&str; 35] = [
    "lookup",
    "forget",
    "getattr",
    "setattr",
    "readlink",
    "mknod",
    "mkdir",
    "symlink",
    "link",
    "unlink",
    "rmdir",
    "rename",
    "create",
    "open",
    "read",
    "write",
    "flush",
    "release",
    "fsync",
    "opendir",
    "readdir",
    "readdirplus",
    "fsyncdir",
    "statfs",
    "setxattr",
    "getxattr",
    "listxattr",
    "removexattr",
    "access",
    "ioctl",
    "poll",
    "fallocate",
    "lseek",
    "copy_file_range",
    "other",
];

/// Up to these many microseconds, each bucket counts the requests that took longer than the one before it allows. One
/// more counts those that took longer than all.
const BUCKETS_MICROS: [u64; 10] = [8, 32, 128, 512, 2048, 8192, 32_768, 131_072, 524_288, 2_097_152];

/// How long requests of one kind took, until the answer was ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    pub kind: &'static str,
    /// How many requests took at most so long.
    pub within: Vec<(Duration, u64)>,
    /// How many there were, and how long all of them took.
    pub requests: u64,
    pub total: Duration,
}

#[derive(Default)]
struct Kind {
    begun: AtomicU64,
    ended: [AtomicU64; BUCKETS_MICROS.len() + 1],
    nanos: AtomicU64,
}

/// A request that is being answered.
#[derive(Clone, Copy)]
pub(crate) struct Begun {
    kind: usize,
    at: Instant,
}

pub(crate) struct Requests([Kind; KINDS.len()]);

impl Default for Requests {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Kind::default()))
    }
}

impl Requests {
    pub(crate) fn begin(&self, kind: &str) -> Begun {
        let kind = KINDS.iter().position(|known| *known == kind).unwrap_or(KINDS.len() - 1);
        self.0[kind].begun.fetch_add(1, Ordering::Relaxed);
        Begun { kind, at: Instant::now() }
    }

    /// The answer is ready.
    pub(crate) fn end(&self, Begun { kind, at }: Begun) {
        self.took(kind, at.elapsed());
    }

    fn took(&self, kind: usize, time: Duration) {
        let bucket = BUCKETS_MICROS.partition_point(|micros| Duration::from_micros(*micros) < time);
        self.0[kind].ended[bucket].fetch_add(1, Ordering::Relaxed);
        self.0[kind].nanos.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Those that came at all.
    pub(crate) fn counts(&self) -> Vec<(&'static str, u64)> {
        let counts = self.0.iter().map(|kind| kind.begun.load(Ordering::Relaxed));
        KINDS.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect()
    }

    /// Of those that came at all.
    pub(crate) fn latencies(&self) -> Vec<Latencies> {
        let of_kind = |(kind, counted): (&'static str, &Kind)| {
            let mut requests = 0;
            let within = counted.ended.iter().enumerate().filter_map(|(bucket, ended)| {
                requests += ended.load(Ordering::Relaxed);
                BUCKETS_MICROS.get(bucket).map(|micros| (Duration::from_micros(*micros), requests))
            });
            let within = within.collect();
            let total = Duration::from_nanos(counted.nanos.load(Ordering::Relaxed));
            Latencies { kind, within, requests, total }
        };
        KINDS.into_iter().zip(&self.0).map(of_kind).filter(|kind| kind.requests > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_kind_and_unnamed_ones_together() {
        let requests = Requests::default();
        for kind in ["open", "lookup", "open", "bmap", "interrupt"] {
            requests.begin(kind);
        }
        assert_eq!(requests.counts(), [("lookup", 1), ("open", 2), ("other", 2)]);
        assert_eq!(requests.latencies(), [], "none is answered");
        requests.end(requests.begin("open"));
        assert_eq!(requests.latencies().len(), 1);
    }

    #[test]
    fn a_request_is_within_every_time_that_is_as_long_as_it_took() {
        let requests = Requests::default();
        let read = KINDS.iter().position(|kind| *kind == "read").unwrap();
        for micros in [0, 8, 9, 2_097_152, 2_097_153] {
            requests.took(read, Duration::from_micros(micros));
        }
        let [read] = &requests.latencies()[..] else { panic!("one kind") };
        let within: Vec<u64> = read.within.iter().map(|(_, count)| *count).collect();
        assert_eq!(within, [2, 3, 3, 3, 3, 3, 3, 3, 3, 4]);
        assert_eq!((read.kind, read.requests, read.total), ("read", 5, Duration::from_micros(4_194_322)));
    }
}
