//! What the pattern of the bank's work costs on this machine without any of its protocol: see `shardpaxosbank::bench::floor`.
//!
//! `cargo bench --bench floor` prints the rate and the latency of each kind of load that the bank is measured with;
//! `-- --seconds 3 --runs 5` says how long and how often, of which the median counts.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use shardpaxosbank::bench::floor::{Pattern, measure};

#[derive(Parser)]
struct Options {
    /// Seconds of each run.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Runs of each pattern.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Keep each server to one core.
    #[arg(long)]
    pin: bool,
    /// Where the files lie; a temporary directory if not given.
    #[arg(long)]
    data_dir: Option<std::path::PathBuf>,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Connections, transfers in a frame, and frames under way on each.
const PATTERNS: [(usize, usize, usize); 5] = [(1, 8190, 4), (1, 8190, 1), (1, 1, 1), (64, 1, 1), (256, 1, 1)];

fn main() -> ExitCode {
    let options = Options::parse();
    let span = Duration::from_secs_f64(options.seconds.clamp(0.1, 3600.0));
    println!(
        "connections   batch   in flight   transfers/s   p50 µs   p99 µs   (medians of {} runs)",
        options.runs
    );
    for (connections, batch, in_flight) in PATTERNS {
        let pattern =
            Pattern { followers: 2, accounts: 10_000, connections, batch, in_flight, pinned: options.pin };
        let mut runs = Vec::new();
        for _ in 0..options.runs.max(1) {
            let place = options.data_dir.clone().unwrap_or_else(std::env::temp_dir);
            let measured = tempfile::tempdir_in(place).and_then(|dir| measure(pattern, span, dir.path()));
            match measured {
                Ok(floor) => runs.push(floor),
                Err(e) => {
                    eprintln!("{e}");
                    return ExitCode::FAILURE;
                }
            }
        }
        let median = |of: &dyn Fn(usize) -> u64| {
            let mut values: Vec<u64> = (0..runs.len()).map(of).collect();
            values.sort_unstable();
            values[values.len() / 2]
        };
        println!(
            "{connections:>11}   {batch:>5}   {in_flight:>9}   {:>11}   {:>6}   {:>6}",
            median(&|n| runs[n].rate() as u64),
            median(&|n| runs[n].latency.quantile(0.5)),
            median(&|n| runs[n].latency.quantile(0.99)),
        );
    }
    ExitCode::SUCCESS
}
