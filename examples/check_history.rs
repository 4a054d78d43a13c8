//! Generates a right history and judges it, with the time that takes:
//! `cargo run --release --example check_history -- OPERATIONS ACCOUNTS CONCURRENT [SEED]`.

#[path = "../tests/history/generate.rs"]
mod generate;

use std::process::ExitCode;
use std::time::Instant;

use generate::{Shape, topology, with_final_reads};
use shardpaxosbank::history::check;

fn main() -> ExitCode {
    let numbers: Result<Vec<u64>, _> = std::env::args().skip(1).map(|a| a.parse()).collect();
    let (operations, accounts, lines, seed) = match numbers.as_deref() {
        Ok([operations, accounts, lines]) => (*operations, *accounts, *lines, 1),
        Ok([operations, accounts, lines, seed]) => (*operations, *accounts, *lines, *seed),
        _ => {
            eprintln!("usage: check_history OPERATIONS ACCOUNTS CONCURRENT [SEED]");
            return ExitCode::from(2);
        }
    };
    if accounts < 2 || lines < 1 {
        eprintln!("at least two accounts, and one operation at a time");
        return ExitCode::from(2);
    }
    let shape = Shape { operations: operations as usize, accounts, lines, ..Shape::default() };
    let history = with_final_reads(seed, &shape);
    let start = Instant::now();
    let verdict = check(&topology(&shape), &history);
    println!("{:.2} s for {} operations", start.elapsed().as_secs_f64(), history.len());
    match verdict {
        Ok(report) => {
            println!("{report:?}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{failure}");
            ExitCode::FAILURE
        }
    }
}
