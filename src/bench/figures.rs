//! What a run is summed up in: for people as a table, for programs as one JSON object.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::bench::drive::{INTERVAL, Measured};
use crate::bench::floor::Floor;
use crate::metrics::Latencies;
use crate::report::tables::plain;

/// What a server, or all clients together, took, of the whole run with its warm-up.
#[derive(Clone, Copy, Default, Debug)]
pub struct Cost {
    pub processor_ns: Option<u64>,
    /// Syncs of its disk.
    pub syncs: u64,
    pub wal_bytes: u64,
    /// Bytes sent on its connections.
    pub net_bytes: u64,
    /// In memory at the end, and at most; of a process of its own.
    pub memory: Option<(u64, u64)>,
}

pub struct Figures {
    pub settings: Value,
    pub measured: Measured,
    /// By name of server, and "clients".
    pub costs: BTreeMap<String, Cost>,
    pub floor: Option<Floor>,
}

/// Percentiles that are told, with their names.
const QUANTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)];

fn percentiles(latencies: &Latencies) -> Value {
    let mut object = Map::new();
    object.insert("count".into(), json!(latencies.summary().count));
    for (name, share) in QUANTILES {
        object.insert(name.into(), json!(latencies.quantile(share)));
    }
    Value::Object(object)
}

/// To three digits, as a measurement deserves.
pub fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let scale = 10_f64.powi(3 - value.abs().log10().ceil() as i32);
    (value * scale).round() / scale
}

impl Figures {
    /// Committed transfers in a second.
    pub fn throughput(&self) -> f64 {
        self.measured.committed as f64 / self.measured.span.as_secs_f64().max(1e-9)
    }

    /// Operations that were answered in a second, reads and aborted transfers too.
    pub fn operations_rate(&self) -> f64 {
        let measured = &self.measured;
        let aborted: u64 = measured.aborted.values().sum();
        let all = measured.committed + aborted + measured.unknown + measured.reads + measured.unread;
        all as f64 / measured.span.as_secs_f64().max(1e-9)
    }

    /// Of the transfers, 0 to 1.
    pub fn aborted_share(&self) -> f64 {
        let aborted: u64 = self.measured.aborted.values().sum();
        aborted as f64 / (self.measured.committed + aborted).max(1) as f64
    }

    /// Processor time of one server, or of the clients, for each transfer.
    pub fn processor_ns_of(&self, name: &str) -> Option<f64> {
        self.costs.get(name)?.processor_ns.map(|ns| self.per_transfer(ns))
    }

    pub fn processor_ns_per_transfer(&self) -> Option<f64> {
        self.processor_ns().map(|ns| self.per_transfer(ns))
    }

    /// The rate, in words.
    pub fn headline(&self) -> String {
        let reads = match self.measured.reads {
            0 => String::new(),
            _ => format!(", {} reads/s", grouped(self.reads_rate() as u64)),
        };
        format!(
            "{} transfers/s committed{reads}, in {:.1} s",
            grouped(self.throughput().round() as u64),
            self.measured.span.as_secs_f64()
        )
    }

    fn reads_rate(&self) -> f64 {
        self.measured.reads as f64 / self.measured.span.as_secs_f64().max(1e-9)
    }

    fn transfers(&self) -> Latencies {
        let mut all = self.measured.within.clone();
        all.merge(&self.measured.across);
        all
    }

    fn per_transfer(&self, total: u64) -> f64 {
        total as f64 / self.measured.transfers_in_all.max(1) as f64
    }

    fn total(&self, of: impl Fn(&Cost) -> u64) -> u64 {
        self.costs.values().map(of).sum()
    }

    fn processor_ns(&self) -> Option<u64> {
        self.costs.values().map(|cost| cost.processor_ns).sum()
    }

    pub fn json(&self) -> Value {
        let measured = &self.measured;
        let aborted: Map<String, Value> =
            measured.aborted.iter().map(|(why, count)| (why.name().to_string(), json!(count))).collect();
        let by_name = |of: &dyn Fn(&Cost) -> Option<Value>| -> Value {
            let known = self.costs.iter().filter_map(|(name, cost)| Some((name.clone(), of(cost)?)));
            Value::Object(known.collect())
        };
        let mut object = json!({
            "throughput_tps": self.throughput().round(),
            "committed": measured.committed,
            "aborted": aborted,
            "unknown": measured.unknown,
            "reads": measured.reads,
            "reads_per_second": self.reads_rate().round(),
            "reads_refused": measured.unread,
            "seconds": measured.span.as_secs_f64(),
            "latency_us": {
                "transfer": percentiles(&self.transfers()),
                "intra": percentiles(&measured.within),
                "cross": percentiles(&measured.across),
                "read": percentiles(&measured.read),
                "batch": percentiles(&measured.batch),
            },
            "cpu_ns_per_transfer": self.processor_ns().map(|ns| rounded(self.per_transfer(ns))),
            "cpu_ns_per_transfer_by": by_name(&|cost| Some(json!(rounded(self.per_transfer(cost.processor_ns?))))),
            "syncs": self.total(|cost| cost.syncs),
            "wal_bytes_per_transfer": rounded(self.per_transfer(self.total(|cost| cost.wal_bytes))),
            "net_bytes_per_transfer": rounded(self.per_transfer(self.total(|cost| cost.net_bytes))),
            "rss_bytes": by_name(&|cost| Some(json!(cost.memory?.0))),
            "rss_bytes_most": by_name(&|cost| Some(json!(cost.memory?.1))),
            "course": { "interval_ms": INTERVAL.as_millis() as u64, "committed": measured.course },
            "settings": self.settings,
        });
        if let Some(floor) = &self.floor {
            object["floor"] = json!({
                "throughput_tps": floor.rate().round(),
                "latency_us": percentiles(&floor.latency),
                "share": rounded(self.throughput() / floor.rate()),
                "p50_times": rounded(self.times_the_floor(0.5)),
            });
        }
        object
    }

    /// How many times as long as on the floor a batch takes, by this percentile.
    fn times_the_floor(&self, share: f64) -> f64 {
        let floor = self.floor.as_ref().map_or(0, |floor| floor.latency.quantile(share));
        self.measured.batch.quantile(share) as f64 / floor.max(1) as f64
    }

    /// Everything but the headline.
    pub fn table(&self) -> String {
        let measured = &self.measured;
        let mut lines = Vec::new();
        let aborted: Vec<String> = measured
            .aborted
            .iter()
            .map(|(why, count)| format!("{} {}", grouped(*count), why.name()))
            .collect();
        if !aborted.is_empty() {
            lines.push(format!("aborted: {}", aborted.join(", ")));
        }
        if measured.unknown + measured.unread > 0 {
            lines.push(format!("unknown: {}; reads refused: {}", measured.unknown, measured.unread));
        }
        let row = |name: &str, latencies: &Latencies| {
            let values = QUANTILES.map(|(_, share)| grouped(latencies.quantile(share)));
            [vec![name.to_string(), grouped(latencies.summary().count)], values.to_vec()].concat()
        };
        let mut rows: Vec<_> = measured.kinds().map(|(name, latencies)| row(name, latencies)).collect();
        rows.extend(self.floor.as_ref().map(|floor| row("batch on the floor", &floor.latency)));
        lines.push(plain(&["µs", "count", "p50", "p90", "p99", "p99.9", "max"], rows, 1..7));

        let row = |(name, cost): (&String, &Cost)| {
            let number = |total: u64| format!("{:.1}", self.per_transfer(total));
            let server = |text: String| if name == CLIENTS { "—".to_string() } else { text };
            vec![
                name.clone(),
                cost.processor_ns.map_or("—".into(), |ns| format!("{:.0}", self.per_transfer(ns))),
                server(number(cost.wal_bytes)),
                server(number(cost.net_bytes)),
                server(grouped(cost.syncs)),
                cost.memory.map_or("—".into(), |(now, _)| format!("{:.0}", now as f64 / 1e6)),
            ]
        };
        let header = ["per transfer", "ns of processor", "bytes of log", "bytes sent", "syncs in all", "MB"];
        lines.push(plain(&header, self.costs.iter().map(row).collect(), 1..6));
        if let Some(floor) = &self.floor {
            lines.push(format!(
                "floor: {} transfers/s; this is {:.1} % of it, and a batch takes {:.2} times as long (p50)",
                grouped(floor.rate().round() as u64),
                100.0 * self.throughput() / floor.rate(),
                self.times_the_floor(0.5)
            ));
        }
        lines.join("\n")
    }
}

/// The name under which what clients take is told.
pub const CLIENTS: &str = "clients";

/// Digits in groups of three.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_to_what_was_measured() {
        assert_eq!([0.0, 1234.6, 0.012345, 99.96].map(rounded), [0.0, 1230.0, 0.0123, 100.0]);
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
