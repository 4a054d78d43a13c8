//! Moves money many times at once, counts the outcomes, and says how long that took.
//!
//! Accounts are drawn at random, so that most transfers go across shards and some share an account: these run one after
//! the other, as the library sees to it.
//!
//! ```sh
//! cargo build --release
//! ./target/release/bank init mybank --balance 1000
//! ./target/release/bank up --config mybank/cluster.toml
//! cargo run --release --example batch -- mybank/cluster.toml 20000
//! ./target/release/bank down --config mybank/cluster.toml
//! ```

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

use shardpaxosbank::client::{AccountId, Bank, Error, Transfer};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let count = arguments.get(1).and_then(|text| text.parse::<usize>().ok());
    let (Some(config), Some(count)) = (arguments.first(), count) else {
        eprintln!("usage: batch CONFIG TRANSFERS");
        return ExitCode::from(2);
    };
    match run(config, count) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: &str, count: usize) -> Result<(), Error> {
    let bank = Bank::connect(config)?;
    let session = bank.session()?;
    let account = || AccountId(rand::random_range(1..=bank.accounts()));
    let transfers: Vec<Transfer> =
        (0..count).map(|_| Transfer { from: account(), to: account(), amount: 1 }).collect();

    let begun = Instant::now();
    let outcomes = session.batch(&transfers)?;
    let took = begun.elapsed().as_secs_f64();

    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for outcome in &outcomes {
        let what = match outcome {
            Ok(_) => "committed".into(),
            Err(Error::Aborted { reason, .. }) => format!("aborted: {reason}"),
            // Whoever counts on these must ask for each by its id.
            Err(Error::Unknown { .. }) => "unknown".into(),
            Err(e) => e.to_string(),
        };
        *counts.entry(what).or_default() += 1;
    }
    for (what, count) in counts {
        println!("{count:>8} {what}");
    }
    println!("{count} transfers in {took:.2} s, {:.0} per second", count as f64 / took);
    Ok(())
}
