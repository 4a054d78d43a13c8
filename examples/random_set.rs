//! Writes a random set file to standard output: `cargo run --example random_set -- SEED ROWS`.
//!
//! Together with the `expected` example it makes as many end-to-end checks as one has patience for.

use std::process::ExitCode;

use shardpaxosbank::config::Topology;
use shardpaxosbank::workload::{SetFileOptions, random_set_file};

fn main() -> ExitCode {
    let numbers: Result<Vec<u64>, _> = std::env::args().skip(1).map(|a| a.parse()).collect();
    let Ok([seed, rows]) = numbers.as_deref().map(|n| <[u64; 2]>::try_from(n).unwrap_or([0, 0])) else {
        eprintln!("usage: random_set SEED ROWS");
        return ExitCode::from(2);
    };
    if rows == 0 {
        eprintln!("usage: random_set SEED ROWS");
        return ExitCode::from(2);
    }
    let options = SetFileOptions::default();
    print!("{}", random_set_file(seed, &Topology::default(), rows as usize, &options));
    ExitCode::SUCCESS
}
