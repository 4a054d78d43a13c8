//! Prints what a set file must give, by running it one row after the other on a plain table of balances.
//!
//! `cargo run --example expected -- FILE [ACCOUNTS [reset]]` writes the JSON that stands beside each file in `data/`;
//! `reset` starts every set afresh, as `bank run --reset-each-set` does.

use std::process::ExitCode;

use shardpaxosbank::config::Topology;
use shardpaxosbank::testset::{model, parse};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(name) = arguments.first() else {
        eprintln!("usage: expected FILE [ACCOUNTS [reset]]");
        return ExitCode::from(2);
    };
    let accounts = arguments.get(1).map_or(Ok(3000), |a| a.parse());
    let outcome = accounts.map_err(|e| format!("ACCOUNTS: {e}")).and_then(|accounts| {
        let topology = Topology { accounts, ..Topology::default() };
        topology.validate()?;
        let bytes = std::fs::read(name).map_err(|e| format!("{name}: {e}"))?;
        let file = parse(name, &bytes, &topology).map_err(|e| e.to_string())?;
        let reset = arguments.get(2).is_some_and(|a| a == "reset");
        Ok(model::to_json(&file, &model::run(&topology, &file, reset)))
    });
    match outcome {
        Ok(expected) => {
            println!("{expected:#}");
            ExitCode::SUCCESS
        }
        Err(what) => {
            eprintln!("error: {what}");
            ExitCode::from(2)
        }
    }
}
