//! Moves money once and shows what came of it.
//!
//! ```sh
//! cargo build --release
//! ./target/release/bank init mybank
//! ./target/release/bank up --config mybank/cluster.toml
//! cargo run --release --example transfer -- mybank/cluster.toml 100 1501 8
//! ./target/release/bank down --config mybank/cluster.toml
//! ```

use std::process::ExitCode;

use shardpaxosbank::client::{AccountId, Bank, Error};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| arguments.get(at).and_then(|text| text.parse::<u32>().ok());
    let (Some(config), Some(from), Some(to), Some(amount)) =
        (arguments.first(), number(1), number(2), number(3))
    else {
        eprintln!("usage: transfer CONFIG FROM TO AMOUNT");
        return ExitCode::from(2);
    };
    match run(config, AccountId(from.into()), AccountId(to.into()), amount.into()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: &str, from: AccountId, to: AccountId, amount: i64) -> Result<(), Error> {
    let bank = Bank::connect(config)?;
    let session = bank.session()?;
    match session.transfer(from, to, amount) {
        Ok(receipt) => println!("{}: committed", receipt.id),
        // Nothing was done: it could be sent anew, as another transfer.
        Err(e) if e.is_definite() => println!("{e}"),
        // It may have been done. Its id, which stands in the error, is the way to find out.
        Err(e) => return Err(e),
    }
    for account in [from, to] {
        println!("account {account}: {} units", bank.balance(account)?);
    }
    Ok(())
}
