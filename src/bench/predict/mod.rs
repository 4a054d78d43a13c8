//! `bank bench --predict`: what a bank of many clusters would do, each server on a machine of its own.
//!
//! The servers' and the clients' code runs, all of it, in virtual time ([`world`]); what its work costs is measured on this
//! machine first ([`calibrate`]). The same simulation of this machine is then held against what one, two and three clusters really
//! do here, with the same load.
//!
//! Deliberately absent: failures, which the simulator of [`crate::sim`] is for, and anything that is not measured but for the
//! network between machines, of which this one has none.

mod calibrate;
mod clients;
mod log;
mod server;
mod tally;
mod work;
mod world;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::bench::draw::Mix;
use crate::bench::figures::{Figures, grouped, rounded};
use crate::bench::plot::{Axis, Plot, Scale, Series};
use crate::bench::predict::calibrate::with_clusters;
use crate::bench::predict::work::Costs;
use crate::bench::predict::world::{Machines, Run, Setup, run};
use crate::bench::{Bank, BenchArgs, End, Place, measure, settings, usage};
use crate::config::Topology;
use crate::report::tables::plain;

/// The shares of transfers across shards that are predicted.
const CROSS: [f64; 3] = [0.0, 0.1, 1.0];
/// The numbers of clusters that predictions are checked with.
const CHECKED: [u16; 3] = [1, 2, 3];
/// Accounts of each cluster.
const ACCOUNTS: u64 = 20_000;
/// Virtual time that is measured at most; of many clusters, all together; and this at least.
const SPAN: Duration = Duration::from_millis(400);
const LEAST_SPAN: Duration = Duration::from_millis(4);

/// The most clusters that are predicted: with more, the tables of sessions that servers keep do not fit into a machine.
pub const MOST_CLUSTERS: u16 = 1_000;

/// What is to be predicted.
#[derive(Clone, PartialEq, Debug)]
pub struct Prospect {
    /// How many clusters, one prediction after the other.
    pub clusters: Vec<u16>,
    /// Clients of each cluster, each with so many batches of so many transfers under way.
    pub clients: u32,
    pub batch: usize,
    pub in_flight: usize,
    /// From one machine to another, one way.
    pub network: Duration,
}

impl Default for Prospect {
    fn default() -> Prospect {
        let clusters = vec![1, 2, 3, 10, 30, 100, 300, 1000];
        Prospect { clusters, clients: 1, batch: 100, in_flight: 2, network: Duration::from_micros(50) }
    }
}

/// One simulated bank.
struct Point {
    clusters: u16,
    cross: f64,
    run: Run,
}

/// What was predicted for this machine, and what it did.
struct Check {
    predicted: Point,
    measured: Figures,
    /// The share of this machine's processors that had something else to do meanwhile, 0 to 1, if the servers are threads: of
    /// processes it is not known what is theirs.
    others: Option<f64>,
}

impl Check {
    fn ratio(&self) -> f64 {
        self.predicted.run.throughput / self.measured.throughput()
    }
}

pub struct Prediction {
    wish: Prospect,
    costs: Costs,
    points: Vec<Point>,
    checks: Vec<Check>,
    settings: Value,
}

/// Measures costs, predicts, and checks. `args` say of which bank, and how long each real run takes.
///
/// # Errors
///
/// A real run fails, or a simulated one, or somebody wants to stop.
pub fn predict(args: &BenchArgs, stop: &Arc<AtomicBool>) -> Result<Prediction, String> {
    let wish = &args.predict;
    let span = match args.load.end {
        End::After(span) => span.min(SPAN),
        End::Operations(_) => LEAST_SPAN,
    };
    let topology = Topology { clusters: 1, accounts: ACCOUNTS, ..args.topology };
    let shape = Setup {
        topology,
        machines: calibrate::here(),
        clients: wish.clients,
        batch: wish.batch,
        in_flight: wish.in_flight,
        cross: 0.0,
        network_ns: wish.network.as_nanos() as u64,
        warm_up: Duration::from_millis(50),
        span,
        seed: args.seed,
    };
    let real = |clusters, clients: u32, batch, in_flight, cross| {
        if stop.load(Ordering::Relaxed) {
            return Err("interrupted".to_string());
        }
        let mut args = BenchArgs {
            floor: None,
            report: None,
            skew: 0.0,
            mix: Mix::Plain { cross, reads: 0.0 },
            ..args.clone()
        };
        args.topology = with_clusters(topology, clusters);
        (args.load.clients, args.load.batch, args.load.in_flight) = (clients as usize, batch, in_flight);
        args.load.rate = None;
        measure(&args, Bank::start(&args)?, stop)
    };

    eprintln!("measuring what everything costs");
    let disk = {
        let dir = args.work_dir()?;
        calibrate::disk(&dir.path().join("log")).map_err(|e| format!("the disk cannot be measured: {e}"))?
    };
    let code = calibrate::code(shape, &disk)?;
    let measured = calibrate::REAL.map(|(clients, batch, in_flight)| real(1, clients, batch, in_flight, 0.0));
    let measured: Vec<Figures> = measured.into_iter().collect::<Result<_, _>>()?;
    let costs = calibrate::costs(shape, &disk, &code, &measured)?;

    let pairs = |clusters: &[u16]| -> Vec<(u16, f64)> {
        let all = clusters.iter().flat_map(|clusters| CROSS.map(|cross| (*clusters, cross)));
        // With one shard there is no other.
        all.filter(|(clusters, cross)| *clusters > 1 || *cross == 0.0).collect()
    };
    let simulate = |costs: &Costs, clusters: u16, cross: f64, machines: Machines, span: Duration| {
        if stop.load(Ordering::Relaxed) {
            return Err("interrupted".to_string());
        }
        let clients = wish.clients * u32::from(clusters);
        let setup =
            Setup { topology: with_clusters(topology, clusters), clients, machines, cross, span, ..shape };
        let setup = Setup { warm_up: span.min(shape.warm_up), ..setup };
        run(setup, costs, None).map(|run| Point { clusters, cross, run })
    };
    let mut checks = Vec::new();
    for (clusters, cross) in pairs(&CHECKED) {
        eprintln!("checking {clusters} clusters, {} % across", 100.0 * cross);
        let clients = wish.clients * u32::from(clusters);
        let before = usage::ticks()?;
        let measured = real(clusters, clients, wish.batch, wish.in_flight, cross)?;
        let after = usage::ticks()?;
        let [busy, all, own] = [0, 1, 2].map(|n| after[n].saturating_sub(before[n]) as f64);
        let others = (args.place == Place::Threads && all > 0.0).then(|| ((busy - own) / all).max(0.0));
        // What others took of the processors makes everything as much slower.
        let left = costs.at_speed(1.0 - others.unwrap_or(0.0).min(0.99));
        let predicted = simulate(&left, clusters, cross, shape.machines, span)?;
        checks.push(Check { predicted, measured, others });
    }
    let mut points = Vec::new();
    for (clusters, cross) in pairs(&wish.clusters) {
        eprintln!("predicting {clusters} clusters, {} % across", 100.0 * cross);
        points.push(simulate(
            &costs,
            clusters,
            cross,
            Machines::Own,
            (span / clusters.into()).max(LEAST_SPAN),
        )?);
    }
    let settings = settings(args, &topology);
    Ok(Prediction { wish: wish.clone(), costs, points, checks, settings })
}

impl Prediction {
    pub fn json(&self) -> Value {
        let point = |point: &Point| {
            json!({
                "clusters": point.clusters,
                "cross": point.cross,
                "throughput_tps": point.run.throughput.round(),
                "batch_us": { "p50": point.run.p50, "p99": point.run.p99, "count": point.run.batches },
                "aborted_share": rounded(point.run.aborted),
                "busiest_share": {
                    "leader": rounded(point.run.busiest[0]),
                    "follower": rounded(point.run.busiest[1]),
                    "client": rounded(point.run.busiest[2]),
                },
            })
        };
        let check = |check: &Check| {
            json!({
                "predicted": point(&check.predicted),
                "measured": check.measured.json(),
                "ratio": rounded(check.ratio()),
                "others_share": check.others.map(rounded),
            })
        };
        json!({
            "predicted": self.points.iter().map(point).collect::<Vec<_>>(),
            "checked": self.checks.iter().map(check).collect::<Vec<_>>(),
            "load": {
                "clients_per_cluster": self.wish.clients,
                "batch": self.wish.batch,
                "in_flight": self.wish.in_flight,
                "accounts_per_cluster": ACCOUNTS,
                "network_us": self.wish.network.as_micros() as u64,
            },
            "costs_ns": {
                "server": self.costs.server.json(),
                "client": self.costs.client.json(),
                "sync_p50": rounded(self.costs.median_sync_ns()),
                "disk_byte": rounded(self.costs.disk_ns_per_byte),
                "wake": rounded(self.costs.wake_ns),
            },
            "assumptions": self.assumptions(),
            "settings": self.settings,
        })
    }

    /// What was predicted, as a table for people.
    pub fn table(&self) -> String {
        let header =
            ["clusters", "across", "transfers/s", "µs of a batch, p50", "p99", "aborted", "busiest leader"];
        let row = |point: &Point| {
            vec![
                point.clusters.to_string(),
                percent(point.cross),
                grouped(rounded(point.run.throughput).round() as u64),
                grouped(point.run.p50),
                grouped(point.run.p99),
                percent(point.run.aborted),
                percent(point.run.busiest[0].min(1.0)),
            ]
        };
        plain(&header, self.points.iter().map(row).collect(), 0..7)
    }

    /// What was predicted for this machine beside what it did.
    pub fn check_table(&self) -> String {
        let header = [
            "clusters",
            "across",
            "predicted",
            "measured",
            "ratio",
            "p50 predicted",
            "measured",
            "p99 predicted",
            "measured",
            "others",
        ];
        let row = |check: &Check| {
            let (run, batch) = (&check.predicted.run, &check.measured.measured.batch);
            vec![
                check.predicted.clusters.to_string(),
                percent(check.predicted.cross),
                grouped(rounded(run.throughput).round() as u64),
                grouped(rounded(check.measured.throughput()).round() as u64),
                format!("{:.2}", check.ratio()),
                grouped(run.p50),
                grouped(batch.quantile(0.5)),
                grouped(run.p99),
                grouped(batch.quantile(0.99)),
                check.others.map_or("—".into(), percent),
            ]
        };
        plain(&header, self.checks.iter().map(row).collect(), 0..10)
    }

    /// Everything for people.
    pub fn text(&self) -> String {
        format!(
            "predicted, each server and client on a machine of its own:\n{}\nchecked on this machine, transfers/s and µs of a batch (others: what else had the processors, and is taken off the prediction):\n{}\n{}",
            self.table(),
            self.check_table(),
            self.assumptions().map(|line| format!("- {line}")).join("\n")
        )
    }

    /// What has to be so for it to come out as predicted.
    pub fn assumptions(&self) -> [String; 6] {
        let Prospect { clients, batch, in_flight, network, .. } = &self.wish;
        [
            format!(
                "Load: for each cluster {clients} client(s) with {in_flight} batches of {batch} transfers under way, among all \
                 accounts of the bank alike, of which each cluster has {}. So the more clusters, the fewer transfers of a batch \
                 go to any one of them.",
                grouped(ACCOUNTS)
            ),
            "Every server, and every client, has a machine as fast as this one to itself, and a disk as fast: with one thread \
             it uses one processor of it."
                .into(),
            format!(
                "A message takes {} µs from one machine to another, and {} µs more until the loop there has woken up, as here. \
                 No link is ever full, and nothing is lost.",
                network.as_micros(),
                rounded(self.costs.wake_ns / 1_000.0)
            ),
            format!(
                "A sync takes as long as syncs took here, {} µs for half of them, and {} ns for each byte.",
                rounded(self.costs.median_sync_ns() / 1_000.0),
                rounded(self.costs.disk_ns_per_byte)
            ),
            "What a turn of a loop costs is a sum over its work. Caches are as warm as with few servers, and sockets cost what \
             they cost with few connections."
                .into(),
            "Nothing fails, no snapshot is taken, and nobody reads.".into(),
        ]
    }

    /// Predictions as lines, with what was measured here.
    pub fn plot(&self) -> Plot {
        let percent = |cross: f64| format!("{} % across", 100.0 * cross);
        let mut series = Vec::new();
        for cross in CROSS {
            // One cluster is the beginning of every line.
            let of = |point: &&Point| point.cross == cross || point.clusters == 1;
            let points =
                self.points.iter().filter(of).map(|point| (f64::from(point.clusters), point.run.throughput));
            series.push(Series { name: percent(cross), points: points.collect(), line: true });
        }
        for cross in CROSS {
            let of = |check: &&Check| check.predicted.cross == cross;
            let points = self.checks.iter().filter(of);
            let points =
                points.map(|check| (f64::from(check.predicted.clusters), check.measured.throughput()));
            series.push(Series {
                name: format!("{}, measured here", percent(cross)),
                points: points.collect(),
                line: false,
            });
        }
        Plot {
            id: "prediction",
            title: "Predicted throughput against clusters",
            note: "Lines: each server on a machine of its own, as predicted. Crosses: what all servers and clients did together on \
                   this one machine, which the same simulation was checked with."
                .into(),
            x: Axis { label: "clusters", scale: Scale::Log },
            y: Axis { label: "transfers/s", scale: Scale::Log },
            series,
        }
    }
}

fn percent(share: f64) -> String {
    format!("{} %", rounded(100.0 * share))
}
