//! The arguments of `bank bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use shardpaxosbank::bench::predict::{MOST_CLUSTERS, Prospect};
use shardpaxosbank::bench::{BATCH_MOST, BenchArgs, End, Load, Mix, Place};
use shardpaxosbank::config::Topology;

#[derive(Args)]
pub struct Bench {
    /// Clusters, and so shards.
    #[arg(long, default_value_t = 1, conflicts_with = "config")]
    clusters: u16,
    /// Servers in each cluster; odd.
    #[arg(long, default_value_t = 3, conflicts_with = "config")]
    servers: u16,
    /// Accounts 1 to N, divided among the shards by range.
    #[arg(long, default_value_t = 10_000, conflicts_with = "config")]
    accounts: u64,
    /// Units with which every account is opened.
    #[arg(long, default_value_t = 1_000_000, conflicts_with = "config")]
    balance: u64,
    /// Start the servers as processes instead of threads.
    #[arg(long, conflicts_with = "config")]
    processes: bool,
    /// Keep each server's thread to one core, and let it interrupt no other server: for machines that do nothing else. Short
    /// turns get faster, long ones slower.
    #[arg(long, conflicts_with_all = ["config", "processes"])]
    pin: bool,
    /// Drive a bank that runs already; needs allow_admin, and nobody else may use it meanwhile.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Where servers that are started keep their logs; a directory is made in it, and removed.
    #[arg(long, conflicts_with = "config")]
    data_dir: Option<PathBuf>,
    /// Clients, each with a session and connections of its own; with --predict, of each cluster.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    clients: u32,
    /// Operations that a client asks for together; 8190, with --predict 100.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=BATCH_MOST as i64))]
    batch: Option<u32>,
    /// Batches that a client has under way at most; 4, with --predict 2.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    in_flight: Option<u32>,
    /// The share of transfers that go across shards, 0 to 1.
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    cross: f64,
    /// The share of operations that are linearizable reads, 0 to 1.
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    reads: f64,
    /// From 0, all accounts alike, to 1, one account in every transfer: Zipf with the exponent SKEW / (1 - SKEW).
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    skew: f64,
    /// What is asked for: transfers, or the transactions of SmallBank.
    #[arg(long, value_enum, default_value_t = Kind::Transfers, conflicts_with_all = ["reads"])]
    mix: Kind,
    /// Operations in a second that are asked for, whether answers come or not; latency counts from when each was due.
    #[arg(long, value_parser = positive)]
    rate: Option<f64>,
    /// Seconds that are measured.
    #[arg(long, default_value_t = 10.0, value_parser = positive)]
    seconds: f64,
    /// Seconds before that, which are not.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    warm_up: f64,
    /// End when so many operations were answered after the warm-up, instead of after some seconds.
    #[arg(long, conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..))]
    transfers: Option<u64>,
    /// What accounts and amounts are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Measure the floor, too: the same pattern of messages and syncs without any protocol.
    #[arg(long)]
    floor: bool,
    /// Make many runs instead, each of which changes one thing, and write a page with plots into this directory.
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Measure what everything costs here instead, predict with it what up to 1000 clusters would do on machines of their own,
    /// and check the prediction with what one to three do on this one.
    #[arg(long, conflicts_with_all = ["config", "clusters", "accounts", "cross", "reads", "skew", "mix", "rate", "floor", "report"])]
    predict: bool,
    /// For how many clusters, with --predict and in a report.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "LIST",
        default_values_t = Prospect::default().clusters,
        value_parser = clap::value_parser!(u16).range(1..=MOST_CLUSTERS as i64)
    )]
    predict_clusters: Vec<u16>,
    /// What a message takes from one machine to another there, in microseconds.
    #[arg(long, value_name = "US", default_value_t = 50, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    network_us: u64,
    /// Print one JSON object and nothing else.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    Transfers,
    Smallbank,
}

fn share(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| "must be a number from 0 to 1".into())
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| *number > 0.0 && *number <= 1e9);
    number.ok_or_else(|| "must be a number above 0, at most 1000000000".into())
}

fn seconds(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| (0.0..=3600.0).contains(number));
    number.ok_or_else(|| "must be a number of seconds, 0 to 3600".into())
}

impl Bench {
    pub fn args(self) -> BenchArgs {
        let span = Duration::from_secs_f64(self.seconds);
        let predicted = Prospect {
            clusters: self.predict_clusters,
            network: Duration::from_micros(self.network_us),
            ..Prospect::default()
        };
        BenchArgs {
            only_predict: self.predict,
            predict: match self.predict {
                true => Prospect {
                    clients: self.clients,
                    batch: self.batch.map_or(predicted.batch, |batch| batch as usize),
                    in_flight: self.in_flight.map_or(predicted.in_flight, |batches| batches as usize),
                    ..predicted
                },
                // A report's flags say what its first run is.
                false => predicted,
            },
            place: match (self.config, self.processes) {
                (Some(config), _) => Place::Elsewhere(config),
                (None, true) => Place::Processes,
                (None, false) => Place::Threads,
            },
            pinned: self.pin,
            topology: Topology {
                clusters: self.clusters,
                servers_per_cluster: self.servers,
                accounts: self.accounts,
                initial_balance: self.balance,
            },
            data_dir: self.data_dir,
            load: Load {
                clients: self.clients as usize,
                in_flight: self.in_flight.unwrap_or(4) as usize,
                batch: self.batch.unwrap_or(8190) as usize,
                rate: self.rate,
                warm_up: Duration::from_secs_f64(self.warm_up),
                end: self.transfers.map_or(End::After(span), End::Operations),
            },
            mix: match self.mix {
                Kind::Transfers => Mix::Plain { cross: self.cross, reads: self.reads },
                Kind::Smallbank => Mix::SmallBank { cross: self.cross },
            },
            skew: self.skew,
            seed: self.seed,
            floor: self.floor.then_some(span),
            report: self.report,
            json: self.json,
        }
    }
}
