//! The numbers of a server and of its process, in the text format of Prometheus.
//!
//! Every series of the server begins with `shardpaxosbank_` and has the labels `server` and `shard`. What concerns the
//! process has the names and the lack of labels that Prometheus' own clients give it.

use std::fmt;
use std::fs;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::prometheus_text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::metrics::Durations;
use crate::report::Role;
use crate::runtime::http::pages::{VERSION, name};
use crate::runtime::status::Status;
use crate::types::ShardId;

const ROLES: [Role; 5] = [Role::Searching, Role::Follower, Role::Leader, Role::NoQuorum, Role::Learner];

/// A page of metrics; `now` is the uptime, `started` the time when the process started, in seconds since 1970.
pub(super) fn page(status: Status, shard: ShardId, now: Duration, started: f64) -> String {
    let labels = [("server", status.server.to_string()), ("shard", shard.to_string())];
    let labels = labels.into_iter().map(|(name, value)| (name.into(), value.into()));
    let mut server = Registry::with_prefix_and_labels("shardpaxosbank", labels);
    server.register_collector(Box::new(Server { status, now }));
    let mut process = Registry::with_prefix("process");
    process.register_collector(Box::new(Process { started }));
    let mut text = String::new();
    for registry in [server, process] {
        encode(&mut text, &registry).expect("a string takes everything");
    }
    text
}

#[derive(Debug)]
struct Server {
    status: Status,
    now: Duration,
}

impl Collector for Server {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Status { metrics, .. } = &self.status;
        let counts = &metrics.counts;
        let mut page = Page(encoder);
        page.labelled_gauge("build_info", "The version that runs", "version", [(VERSION, 1)])?;
        page.gauge("uptime_seconds", "How long the process has been running", self.now.as_secs_f64())?;
        let age = self.now.saturating_sub(self.status.uptime).as_secs_f64();
        page.gauge(
            "last_turn_age_seconds",
            "How old the numbers of this server are: time since its event loop turned",
            age,
        )?;
        page.gauge("stopped", "1 if the server stopped for good", u64::from(self.status.stopped.is_some()))?;
        page.gauge("cut_off", "1 while an order keeps the server cut off", u64::from(self.status.failed))?;
        self.transactions(&mut page)?;
        self.served(&mut page)?;

        page.labelled_gauge(
            "role",
            "1 for the role that this server has in its cluster",
            "role",
            ROLES.map(|role| (name(role), u64::from(role == self.status.role))),
        )?;
        page.gauge("ballot_round", "Round of the highest ballot promised", self.status.ballot.round)?;
        page.gauge("decided_slot", "The last slot that this server knows as decided", self.status.decided.0)?;
        page.gauge("applied_slot", "The last slot that is applied to the accounts", self.status.applied.0)?;
        page.gauge(
            "lag_slots",
            "Slots that are decided, as far as leaders have told this server, and not applied here",
            self.status.lag,
        )?;
        page.counter("elections_won", "Elections that this server won", counts.elections_won)?;
        page.counter("leadership_losses", "How often this server led no more", counts.leadership_losses)?;
        page.counter(
            "digest_mismatches",
            "Agreed slots at which other servers reported another state; stopping for one counts once more",
            counts.digest_mismatches,
        )?;

        page.counter("syncs", "Syncs of the disk, of any file", metrics.syncs)?;
        page.histogram(
            "sync_duration_seconds",
            "How long it took to make the log records of one turn durable",
            &metrics.sync_durations,
        )?;
        page.counter("wal_appended_bytes", "Bytes appended to the write-ahead log", metrics.wal_bytes)?;
        page.gauge("wal_size_bytes", "What the write-ahead log takes on disk", self.status.log_bytes)?;
        page.gauge(
            "disk_full",
            "1 while the disk gives no more space",
            u64::from(self.status.room.is_some()),
        )?;
        if let Some(room) = self.status.room {
            page.gauge("disk_room_bytes", "While the disk is full: what still fits into the log", room)?;
        }
        page.gauge(
            "repairing",
            "1 while damage has taken votes that are not made good",
            u64::from(self.status.repairing),
        )?;
        page.counter("damage_found", "Finds of damage on the disk", metrics.damage_found)?;
        page.counter(
            "values_rewritten",
            "Decided values that damage took, and that were written again",
            counts.values_rewritten,
        )?;
        page.counter(
            "snapshots_installed",
            "Snapshots from other servers that this one went on from",
            counts.snapshots_installed,
        )?;

        page.counter("messages_received", "Frames from peers and clients", metrics.messages_in)?;
        page.counter("messages_sent", "Frames to peers and clients", metrics.messages_out)?;
        page.counter(
            "messages_dropped",
            "Messages thrown away, for a full buffer or a lost connection",
            metrics.dropped_messages,
        )?;
        page.counter("received_bytes", "Bytes of frames received", metrics.bytes_in)?;
        page.counter("sent_bytes", "Bytes of frames sent", metrics.bytes_out)
    }
}

impl Server {
    fn transactions(&self, page: &mut Page<'_>) -> fmt::Result {
        let Status { metrics, .. } = &self.status;
        page.counter(
            "transactions_committed",
            "Transactions that committed at this shard, counted where they are applied, on each of its servers",
            metrics.counts.committed,
        )?;
        page.labelled_counter(
            "transactions_aborted",
            "Transactions that aborted at this shard, counted where they are applied, on each of its servers",
            "reason",
            metrics.counts.aborted(),
        )?;
        page.counter(
            "led_transactions",
            "Transactions in slots that this server proposed and that were decided, repetitions included",
            metrics.led_transactions,
        )?;
        page.histogram(
            "led_slot_duration_seconds",
            "From proposing a slot to applying its decision, on the server that proposed it",
            &metrics.led_durations,
        )?;
        page.gauge("queue_requests", "Requests that wait for a place in a slot", self.status.queued)?;
        page.gauge("queue_bytes", "Bytes of the requests that wait for a place", self.status.queued_bytes)?;
        page.gauge("slots_in_flight", "Slots proposed and not decided", self.status.in_flight)?;
        page.gauge(
            "in_doubt_transactions",
            "Transactions that this shard voted YES to and whose outcome is not applied",
            self.status.in_doubt,
        )
    }

    fn served(&self, page: &mut Page<'_>) -> fmt::Result {
        let served = &self.status.metrics.served;
        page.labelled_histogram(
            "client_request_duration_seconds",
            "From reading a request of a client that speaks RESP to knowing the reply, on the server that it asked",
            "request",
            [
                ("transfer-within-shard", &served.within),
                ("transfer-across-shards", &served.across),
                ("balance", &served.reads),
            ],
        )?;
        page.counter(
            "client_requests_refused",
            "Requests of such clients that were refused with BUSY, since too much was under way at this server",
            served.refused,
        )?;
        page.gauge("client_requests_in_flight", "Requests of such clients under way", served.under_way)?;
        page.gauge("client_connections", "Such clients that have asked for something", served.connections)
    }
}

/// Writes one family after the other.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    /// A counter; `_total` is added to its name.
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let counter = ConstCounter::new(value);
        counter.encode(self.0.encode_descriptor(name, help, None, MetricType::Counter)?)
    }

    fn gauge<V>(&mut self, name: &str, help: &str, value: V) -> fmt::Result
    where
        ConstGauge<V>: EncodeMetric,
    {
        ConstGauge::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }

    fn labelled_counter(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'static str, u64)>,
    ) -> fmt::Result {
        let family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        labelled(family, label, values, ConstCounter::new)
    }

    fn labelled_gauge(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'static str, u64)>,
    ) -> fmt::Result {
        let family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        labelled(family, label, values, ConstGauge::new)
    }

    fn histogram(&mut self, name: &str, help: &str, durations: &Durations) -> fmt::Result {
        put(self.0.encode_descriptor(name, help, None, MetricType::Histogram)?, durations)
    }

    fn labelled_histogram<'a>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'static str, &'a Durations)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (which, durations) in values {
            put(family.encode_family(&[(label, which)])?, durations)?;
        }
        Ok(())
    }
}

/// Writes one histogram, in seconds.
fn put(mut metric: MetricEncoder, durations: &Durations) -> fmt::Result {
    let ranges: Vec<(f64, u64)> =
        durations.ranges().map(|(bound, count)| (bound.as_secs_f64(), count)).collect();
    metric.encode_histogram::<NoLabelSet>(durations.sum().as_secs_f64(), durations.count(), &ranges, None)
}

/// One metric for each value of a label.
fn labelled<M: EncodeMetric>(
    mut family: MetricEncoder<'_>,
    label: &str,
    values: impl IntoIterator<Item = (&'static str, u64)>,
    metric: impl Fn(u64) -> M,
) -> fmt::Result {
    for (which, value) in values {
        metric(value).encode(family.encode_family(&[(label, which)])?)?;
    }
    Ok(())
}

/// What the system says of this process; what it does not say is left out.
#[derive(Debug)]
struct Process {
    started: f64,
}

impl Collector for Process {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        page.gauge("start_time_seconds", "When the process started, since 1970", self.started)?;
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        for (name, help, key) in [
            ("resident_memory_bytes", "Resident memory", "VmRSS:"),
            ("virtual_memory_bytes", "Virtual memory", "VmSize:"),
        ] {
            if let Some(kib) = number_behind(&status, key) {
                page.gauge(name, help, kib * 1024)?;
            }
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // Looking takes one itself.
            page.gauge("open_fds", "Open file descriptors", (open.count() as u64).saturating_sub(1))?;
        }
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        if let Some(most) = number_behind(&limits, "Max open files") {
            page.gauge("max_fds", "File descriptors that the process may open", most)?;
        }
        Ok(())
    }
}

/// The first number behind `key`, at the beginning of a line.
fn number_behind(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}
