//! Makes a list of payments exactly once, however often it is killed on the way.
//!
//! Payment `n` moves one unit from account `n` to the account half of the bank further on. Before it is sent, its id is
//! noted in a file, and how it ended after that. When the program starts again it asks what became of those that have an id
//! and no end, repeats them under the same id, which is safe whatever the answer is, and goes on with those that have none.
//! Kill it whenever you like, with `kill -9` too, and its servers, as long as a majority of each cluster comes back. In
//! the end it prints how many units the receivers have more than the senders: two for each payment, if nobody else has moved
//! money in this bank.
//!
//! ```sh
//! cargo build --release --example resume --bin bank
//! ./target/release/bank init mybank
//! ./target/release/bank up --config mybank/cluster.toml
//! timeout -s KILL 1 ./target/release/examples/resume mybank/cluster.toml notes 1500
//! timeout -s KILL 1 ./target/release/examples/resume mybank/cluster.toml notes 1500
//! ./target/release/examples/resume mybank/cluster.toml notes 1500
//! ./target/release/bank down --config mybank/cluster.toml
//! ```
//!
//! The bank forgets how transfers ended when nobody used their session for ten minutes; whoever starts it again later than
//! that is told which payment to look after.

use std::collections::BTreeMap;
use std::error::Error as AnyError;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::process::ExitCode;

use shardpaxosbank::client::{AccountId, Bank, Error, Reason, Transfer, TxnId};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let count = arguments.get(2).and_then(|text| text.parse::<u64>().ok());
    let (Some(config), Some(notes), Some(count)) = (arguments.first(), arguments.get(1), count) else {
        eprintln!("usage: resume CONFIG NOTES PAYMENTS");
        return ExitCode::from(2);
    };
    match run(config, notes, count) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// How far a payment came.
#[derive(Clone, Copy, PartialEq)]
enum State {
    /// It may have been sent under this id.
    Noted(TxnId),
    Committed,
    /// Its last id came to nothing, for good; it needs another one.
    Aborted,
}

fn run(config: &str, notes: &str, count: u64) -> Result<(), Box<dyn AnyError>> {
    let bank = Bank::connect(config)?;
    let half = bank.accounts() / 2;
    if count > half {
        return Err(format!("at most {half} payments, so that no account has two").into());
    }
    let payment = |n: u64| Transfer { from: AccountId(n), to: AccountId(n + half), amount: 1 };
    let mut notes = Notes::open(notes)?;

    for (n, state) in notes.states.clone() {
        if let State::Noted(id) = state {
            println!("payment {n}: {id} was {} when it was asked for", bank.look_up(id)?);
            let ended = notes.end(n, bank.repeat(id, payment(n)))?;
            println!("payment {n}: {id} is {}", if ended { "committed" } else { "aborted" });
        }
    }
    let done = notes.states.values().filter(|state| **state == State::Committed).count();
    println!("{done} of {count} payments were made before");

    let session = bank.session()?;
    for n in 1..=count {
        while notes.states.get(&n) != Some(&State::Committed) {
            let id = session.next_id()?;
            notes.put(n, State::Noted(id))?;
            notes.end(n, session.submit(id, payment(n)))?;
        }
    }

    let (mut paid, mut received) = (0, 0);
    for n in 1..=count {
        paid += bank.balance(payment(n).from)?;
        received += bank.balance(payment(n).to)?;
    }
    println!("{count} payments are made; the receivers have {} units more than the senders", received - paid);
    Ok(())
}

/// The file of notes: a line for each step of a payment, its number first. What was noted is on disk.
struct Notes {
    file: File,
    states: BTreeMap<u64, State>,
}

impl Notes {
    fn open(path: &str) -> Result<Notes, Box<dyn AnyError>> {
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        // A note that was cut off was not waited for, so nothing was sent on its account.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64)?;
        file.seek(SeekFrom::End(0))?;
        let mut states = BTreeMap::new();
        for line in text[..whole].lines() {
            let (n, state) = line.split_once(' ').ok_or_else(|| format!("{path}: {line:?} is no note"))?;
            let state = match state {
                "committed" => State::Committed,
                "aborted" => State::Aborted,
                id => State::Noted(id.parse().map_err(|()| format!("{path}: {id:?} is no id"))?),
            };
            states.insert(n.parse()?, state);
        }
        Ok(Notes { file, states })
    }

    fn put(&mut self, n: u64, state: State) -> std::io::Result<()> {
        match state {
            State::Noted(id) => writeln!(self.file, "{n} {id}")?,
            State::Committed => writeln!(self.file, "{n} committed")?,
            State::Aborted => writeln!(self.file, "{n} aborted")?,
        }
        self.file.sync_data()?;
        self.states.insert(n, state);
        Ok(())
    }

    /// Notes how a payment ended, and returns whether it was made. What is not known stays as it was noted before.
    fn end<T>(&mut self, n: u64, outcome: Result<T, Error>) -> Result<bool, Box<dyn AnyError>> {
        match outcome {
            Ok(_) => self.put(n, State::Committed)?,
            Err(Error::Aborted {
                reason: Reason::NoQuorum | Reason::LockContention | Reason::StorageFull,
                ..
            })
            | Err(Error::SessionExpired { ruled_out: true, .. }) => self.put(n, State::Aborted)?,
            Err(e) => return Err(format!("payment {n}: {e}").into()),
        }
        Ok(self.states[&n] == State::Committed)
    }
}
