//! What is counted and timed: latency histograms, and the counters that every server keeps about itself.
//!
//! Means hide what matters, so latencies are kept as HDR histograms, which can be merged over servers and sets without
//! losing their tails. Nothing here reads a clock: whoever measures hands in a [`Duration`].
//!
//! Deliberately absent: rates and units for people, which belong to [`crate::report`], and any sharing between threads.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Latencies in microseconds, to three significant digits. What lies outside 1 µs … 1 h counts as the nearest end.
#[derive(Clone, Default, PartialEq)]
pub struct Latencies {
    /// Absent until the first record: most servers never lead, and an empty histogram would already take 16 kB.
    histogram: Option<Histogram<u64>>,
}

/// Percentiles in microseconds; all 0 when nothing was recorded.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize)]
pub struct Summary {
    pub count: u64,
    pub p50: u64,
    pub p95: u64,
    pub p99: u64,
    pub max: u64,
}

/// One server's counters since it started; a restart begins at zero.
#[derive(Clone, Default, PartialEq, Debug, Serialize, Deserialize)]
pub struct ServerMetrics {
    /// Frames received from and sent to peers and clients.
    pub messages_in: u64,
    pub messages_out: u64,
    /// Bytes of those frames.
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Messages thrown away: the peer's buffer was full, or this server was cut off.
    pub dropped_messages: u64,
    /// Every sync of its disk, those that prepare and finish segments included.
    pub syncs: u64,
    /// How long it took to make one turn's records durable.
    pub sync_latency: Latencies,
    /// Bytes appended to the write-ahead log.
    pub wal_bytes: u64,
    /// What was found damaged on its disk, in words: the first few.
    pub damage: Vec<String>,
    /// Transactions in slots that this server proposed and that were decided.
    pub led_transactions: u64,
    /// From proposing a slot to its decision, once per slot.
    pub led_latency: Latencies,
    /// From its first proposal to its last decision.
    pub led_span: Duration,
    /// When its first proposal was made, on its own clock.
    pub led_first: Option<Duration>,
}

impl Latencies {
    const MAX_US: u64 = 3_600_000_000;
    const SIGNIFICANT_DIGITS: u8 = 3;

    pub fn record(&mut self, latency: Duration) {
        let us = latency.as_micros().clamp(1, u128::from(Self::MAX_US)) as u64;
        self.histogram_mut().record(us).expect("a histogram that grows holds any u64");
    }

    /// Adds everything that `other` recorded.
    pub fn merge(&mut self, other: &Latencies) {
        if let Some(theirs) = &other.histogram {
            self.histogram_mut().add(theirs).expect("a histogram that grows holds any other");
        }
    }

    pub fn summary(&self) -> Summary {
        let Some(histogram) = &self.histogram else { return Summary::default() };
        // A histogram answers with the upper end of a bucket, which may lie beyond the longest latency that counts.
        let quantile = |q| histogram.value_at_quantile(q).min(Self::MAX_US);
        Summary {
            count: histogram.len(),
            p50: quantile(0.50),
            p95: quantile(0.95),
            p99: quantile(0.99),
            max: histogram.max().min(Self::MAX_US),
        }
    }

    fn histogram_mut(&mut self) -> &mut Histogram<u64> {
        self.histogram.get_or_insert_with(|| {
            Histogram::new(Self::SIGNIFICANT_DIGITS).expect("three digits are accepted")
        })
    }
}

// On the wire as pairs of a value and how often it was recorded.
impl Serialize for Latencies {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let recorded = self.histogram.iter().flat_map(|h| h.iter_recorded());
        let pairs = recorded.map(|v| (v.value_iterated_to(), v.count_at_value()));
        pairs.collect::<Vec<(u64, u64)>>().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Latencies {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Latencies, D::Error> {
        let mut latencies = Latencies::default();
        for (value, count) in Vec::<(u64, u64)>::deserialize(deserializer)? {
            let value = value.clamp(1, Latencies::MAX_US);
            latencies.histogram_mut().record_n(value, count).expect("a histogram that grows holds any u64");
        }
        Ok(latencies)
    }
}

impl fmt::Debug for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.summary().fmt(f)
    }
}

impl ServerMetrics {
    const DAMAGE_AT_MOST: usize = 16;

    /// Something on its disk was not as it was written (S2).
    pub fn record_damage(&mut self, what: &str) {
        if self.damage.len() < Self::DAMAGE_AT_MOST {
            self.damage.push(what.to_string());
        }
    }

    /// A slot that this server proposed is decided. `decided` is a time of the server's own clock.
    pub fn record_led(&mut self, transactions: u64, decided: Duration, latency: Duration) {
        let first = *self.led_first.get_or_insert(decided.saturating_sub(latency));
        self.led_transactions += transactions;
        self.led_latency.record(latency);
        self.led_span = self.led_span.max(decided.saturating_sub(first));
    }

    /// Transactions per second over the time in which this server led; 0 when it never did.
    pub fn led_throughput_tps(&self) -> f64 {
        per_second(self.led_transactions, self.led_span)
    }
}

/// A rate, and 0 where there was no time to measure it in.
pub fn per_second(count: u64, span: Duration) -> f64 {
    if span.is_zero() { 0.0 } else { count as f64 / span.as_secs_f64() }
}
