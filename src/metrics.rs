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

use crate::types::Reason;

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

/// How many durations lie in each of a few fixed ranges, which a monitoring system can add up over servers and over time.
/// Unlike [`Latencies`] it is small and copied in no time, and its sum is exact.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Durations {
    /// By range, from the shortest; the last has no upper bound.
    counts: [u64; Durations::BOUNDS_US.len() + 1],
    sum: Duration,
}

/// What happened on one server, by kind.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Counts {
    /// Transactions that committed at this shard, as this server applied it from its log: once each, on every server of the
    /// cluster, whoever led. Neither a repetition counts, nor what came with a snapshot or was applied before the start.
    pub committed: u64,
    /// Transactions that this shard said NO to, in the same way, by [`Reason::ALL`].
    aborted: [u64; Reason::ALL.len()],
    /// Those that ended here because another shard said NO.
    aborted_elsewhere: u64,
    pub elections_won: u64,
    pub leadership_losses: u64,
    /// Agreed slots at which other servers of the cluster reported another state; stopping for one counts once more (P4).
    pub digest_mismatches: u64,
    /// Decided values that damage took, and that came from another server and were written again (S2).
    pub values_rewritten: u64,
    /// Snapshots from other servers that this one went on from.
    pub snapshots_installed: u64,
}

/// What a server did for the clients whose requests it sees through, those that speak RESP.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Served {
    /// From reading a request to knowing what it is answered with: transfers within a shard, transfers across shards, reads.
    /// Those that are answered *unknown* count with the time until then.
    pub within: Durations,
    pub across: Durations,
    pub reads: Durations,
    /// Requests that were refused since too much is under way.
    pub refused: u64,
    /// Connections that have asked for anything, and requests under way, now.
    pub connections: u64,
    pub under_way: u64,
}

/// One server's counters since it started; a restart begins at zero.
#[derive(Clone, Default, PartialEq, Debug, Serialize, Deserialize)]
pub struct ServerMetrics {
    pub counts: Counts,
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
    /// The same.
    pub sync_durations: Durations,
    /// Bytes appended to the write-ahead log.
    pub wal_bytes: u64,
    pub served: Served,
    /// What was found damaged on its disk, in words: the first few.
    pub damage: Vec<String>,
    /// How many such finds there were.
    pub damage_found: u64,
    /// Transactions in slots that this server proposed and that were decided.
    pub led_transactions: u64,
    /// From proposing a slot to its decision, once per slot.
    pub led_latency: Latencies,
    /// The same.
    pub led_durations: Durations,
    /// From its first proposal to its last decision.
    pub led_span: Duration,
    /// When its first proposal was made, on its own clock.
    pub led_first: Option<Duration>,
}

impl Latencies {
    const MAX_US: u64 = 3_600_000_000;
    const SIGNIFICANT_DIGITS: u8 = 3;

    pub fn record(&mut self, latency: Duration) {
        self.record_many(latency, 1);
    }

    /// The same latency, so many times.
    pub fn record_many(&mut self, latency: Duration, count: u64) {
        if count > 0 {
            let us = latency.as_micros().clamp(1, u128::from(Self::MAX_US)) as u64;
            self.histogram_mut().record_n(us, count).expect("a histogram that grows holds any u64");
        }
    }

    /// The latency in microseconds that this share of those recorded, 0 to 1, does not exceed; 0 when there is none.
    pub fn quantile(&self, share: f64) -> u64 {
        // A histogram answers with the upper end of a bucket, which may lie beyond the longest latency that counts.
        self.histogram.as_ref().map_or(0, |h| h.value_at_quantile(share).min(h.max()).min(Self::MAX_US))
    }

    /// Adds everything that `other` recorded.
    pub fn merge(&mut self, other: &Latencies) {
        if let Some(theirs) = &other.histogram {
            self.histogram_mut().add(theirs).expect("a histogram that grows holds any other");
        }
    }

    pub fn summary(&self) -> Summary {
        let Some(histogram) = &self.histogram else { return Summary::default() };
        Summary {
            count: histogram.len(),
            p50: self.quantile(0.50),
            p95: self.quantile(0.95),
            p99: self.quantile(0.99),
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

impl Durations {
    /// The longest duration of each range but the last, in microseconds.
    pub const BOUNDS_US: [u64; 16] = [
        100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
        2_500_000, 5_000_000, 10_000_000,
    ];

    pub fn record(&mut self, duration: Duration) {
        let range = Self::BOUNDS_US.partition_point(|bound| Duration::from_micros(*bound) < duration);
        self.counts[range] += 1;
        self.sum = self.sum.saturating_add(duration);
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All of them together.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// The upper bound of each range, and how many durations lie in it and in none below. Beside them there are those that
    /// are longer than the last bound.
    pub fn ranges(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        Self::BOUNDS_US.iter().map(|bound| Duration::from_micros(*bound)).zip(self.counts)
    }
}

impl Counts {
    /// A transaction aborted at this shard; `None` where it was another shard that said NO.
    pub fn abort(&mut self, why: Option<Reason>) {
        match why {
            Some(reason) => self.aborted[reason as usize - 1] += 1,
            None => self.aborted_elsewhere += 1,
        }
    }

    /// How many transactions aborted for each reason that there is.
    pub fn aborted(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let mine = Reason::ALL.iter().map(|reason| reason.name()).zip(self.aborted);
        mine.chain([("other-shard", self.aborted_elsewhere)])
    }

    /// Adds what another one counted.
    pub fn add(&mut self, other: &Counts) {
        self.committed += other.committed;
        self.aborted.iter_mut().zip(other.aborted).for_each(|(mine, theirs)| *mine += theirs);
        self.aborted_elsewhere += other.aborted_elsewhere;
        self.elections_won += other.elections_won;
        self.leadership_losses += other.leadership_losses;
        self.digest_mismatches += other.digest_mismatches;
        self.values_rewritten += other.values_rewritten;
        self.snapshots_installed += other.snapshots_installed;
    }
}

impl ServerMetrics {
    const DAMAGE_AT_MOST: usize = 16;

    /// Something on its disk was not as it was written (S2).
    pub fn record_damage(&mut self, what: &str) {
        self.damage_found += 1;
        if self.damage.len() < Self::DAMAGE_AT_MOST {
            self.damage.push(what.to_string());
        }
    }

    /// One turn's records became durable.
    pub fn record_sync(&mut self, took: Duration) {
        self.sync_latency.record(took);
        self.sync_durations.record(took);
    }

    /// A slot that this server proposed is decided. `decided` is a time of the server's own clock.
    pub fn record_led(&mut self, transactions: u64, decided: Duration, latency: Duration) {
        let first = *self.led_first.get_or_insert(decided.saturating_sub(latency));
        self.led_transactions += transactions;
        self.led_latency.record(latency);
        self.led_durations.record(latency);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_lies_in_the_first_range_that_holds_it() {
        let mut durations = Durations::default();
        let us = Duration::from_micros;
        for one in
            [us(0), us(100), Duration::from_nanos(100_001), us(250), us(251), us(10_000_000), us(10_000_001)]
        {
            durations.record(one);
        }
        let some: Vec<(Duration, u64)> = durations.ranges().filter(|(_, count)| *count > 0).collect();
        assert_eq!(some, [(us(100), 2), (us(250), 2), (us(500), 1), (us(10_000_000), 1)]);
        assert_eq!(durations.count(), 7, "one is longer than all bounds");
        assert_eq!(durations.sum(), Duration::from_nanos(20_000_702_001));
        assert!(Durations::BOUNDS_US.is_sorted());
    }

    #[test]
    fn counts_add_up_by_reason() {
        let (mut all, mut turn) = (Counts { committed: 1, ..Counts::default() }, Counts::default());
        Reason::ALL.into_iter().for_each(|reason| turn.abort(Some(reason)));
        turn.abort(Some(Reason::InsufficientBalance));
        turn.abort(None);
        turn.elections_won = 1;
        all.add(&turn);
        all.add(&turn);
        let aborted: Vec<(&str, u64)> = all.aborted().collect();
        assert_eq!(aborted.len(), Reason::ALL.len() + 1);
        assert_eq!(
            aborted[6..],
            [("insufficient-balance", 4), ("id-reused", 2), ("no-session", 2), ("other-shard", 2)]
        );
        assert!(aborted[..6].iter().all(|(_, count)| *count == 2));
        assert_eq!((all.committed, all.elections_won), (1, 2));
    }

    #[test]
    fn damage_counts_beyond_what_is_named() {
        let mut metrics = ServerMetrics::default();
        (0..20).for_each(|n| metrics.record_damage(&n.to_string()));
        assert_eq!((metrics.damage_found, metrics.damage.len()), (20, 16));
    }
}
