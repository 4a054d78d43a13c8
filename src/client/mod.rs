//! The client library: a bank whose servers run elsewhere, for programs written in Rust. Every call waits for its answer.
//!
//! ```no_run
//! use shardpaxosbank::client::{AccountId, Bank, Error};
//!
//! fn main() -> Result<(), Error> {
//!     let bank = Bank::connect("mybank/cluster.toml")?;
//!     let session = bank.session()?;
//!     match session.transfer(AccountId(100), AccountId(1501), 8) {
//!         Ok(receipt) => println!("{} is committed", receipt.id),
//!         Err(e) if e.is_definite() => println!("nothing was done, and never will be: {e}"),
//!         Err(e) => return Err(e),
//!     }
//!     println!("{} units", bank.balance(AccountId(1501))?);
//!     Ok(())
//! }
//! ```
//!
//! # Exactly once
//!
//! Each transfer has an id, its session's name and a number in it, before anything of it is sent. While nobody can say
//! what became of it, the library sends it again under this id, to whichever servers lead then, until the time-out of the
//! call; the id and the transfer together take effect once or not at all, however often and by whomever they are sent (B3,
//! T1). What is still unknown then is an error that carries the id, and the program may go on asking: with
//! [`Bank::look_up`], which changes nothing, or with [`Bank::repeat`], which carries it out if that did not happen.
//!
//! A program that must not lose track when it is killed asks for its ids first, writes them down with the transfers, and
//! then submits these:
//!
//! ```no_run
//! # use shardpaxosbank::client::{AccountId, Bank, Error, Transfer};
//! # fn write_down(_: impl std::fmt::Debug) {}
//! # fn main() -> Result<(), Error> {
//! # let bank = Bank::connect("mybank/cluster.toml")?;
//! let session = bank.session()?;
//! let id = session.next_id()?;
//! let transfer = Transfer { from: AccountId(100), to: AccountId(1501), amount: 8 };
//! write_down((id, transfer));
//! session.submit(id, transfer)?;
//!
//! // After a restart, as another Bank, of what stands there:
//! println!("{id}: {}", bank.look_up(id)?);
//! bank.repeat(id, transfer)?;
//! # Ok(())
//! # }
//! ```
//!
//! The bank remembers how the transfers of a session ended for as long as the session lives: ten minutes after its last
//! use, unless the configuration says otherwise (`session_idle_timeout_ms`).
//!
//! # Threads and time-outs
//!
//! [`Bank`] and [`Session`] are handles: cheap to clone, and usable from any thread, many calls at a time. Behind all
//! clones stands one coordinator thread with its connections. A call gives up after its handle's time-out,
//! [`TIMEOUT`] unless [`Bank::with_timeout`] set another one.
//!
//! Deliberately absent: futures, a retry under another id (only the program knows whether a transfer that aborted is still
//! wanted), reads that may be old, orders to servers.

mod call;
mod error;
mod session;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::never;

use crate::runtime::client::Client;
use crate::runtime::config_file;
use crate::txn::{Op, Outcome, Reach};

pub use crate::runtime::config_file::ClusterConfig;
pub use crate::txn::Found;
pub use crate::types::{AccountId, Reason, Transfer, TxnId};
pub use error::Error;
pub use session::Session;

/// How long a call waits for its answer if nothing else was set. A bank whose leader dies answers again within about two
/// seconds, with the time-outs that it has by default.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// The longest time-out; the time until then can always be reckoned.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// A transfer took effect: it is durable on a majority of the servers of every shard that takes part.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub struct Receipt {
    pub id: TxnId,
}

/// A connection to a bank. See the module documentation.
///
/// When the last handle is dropped, sessions included, that takes up to two seconds if transfers are under way: locks that
/// they hold are given back.
#[derive(Clone)]
pub struct Bank {
    shared: Arc<Shared>,
    timeout: Duration,
}

struct Shared {
    client: Client,
    config: ClusterConfig,
}

impl Bank {
    /// Reads `cluster.toml` and connects, see [`Bank::connect_to`].
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if the file cannot be read or is unsound, and those of [`Bank::connect_to`].
    pub fn connect(config: impl AsRef<Path>) -> Result<Bank, Error> {
        Bank::connect_to(&config_file::load(config.as_ref()).map_err(Error::Config)?)
    }

    /// Starts the coordinator thread and looks for each shard's leader. Whether there are any makes no difference: the
    /// servers may come later, and each call waits for those that it needs.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if a shard cannot be reached and a server said that the configuration does not fit, and
    /// [`Error::Broken`] if the system has no thread or no descriptors left.
    pub fn connect_to(config: &ClusterConfig) -> Result<Bank, Error> {
        let mut client = Client::start(config.context.clone(), config.settings.timeouts)
            .map_err(|e| Error::Broken(e.to_string()))?;
        // What the thread reports unasked is for others; with nobody at the other end it is not kept.
        client.news = never();
        let bank = Bank { shared: Arc::new(Shared { client, config: config.clone() }), timeout: TIMEOUT };
        if let Ok(reply) = bank.shared.client.ask(Op::Confirm { anew: false }, bank.timeout)
            && let (Outcome::Confirmed(reaches), Some(why)) = (&reply.outcome, &reply.refusal)
            && reaches.contains(&Reach::NoQuorum)
        {
            return Err(Error::Refused(why.to_string()));
        }
        Ok(bank)
    }

    /// The same bank with another time-out for each call, up to a day; longer ones count as a day. Sessions that this
    /// handle opens have it, too.
    pub fn with_timeout(&self, timeout: Duration) -> Bank {
        Bank { shared: self.shared.clone(), timeout: timeout.min(LONGEST_TIMEOUT) }
    }

    /// How many accounts there are: they are numbered from 1 to here.
    pub fn accounts(&self) -> u64 {
        self.shared.config.context.topology.accounts
    }

    /// Opens a session, in which transfers get their ids.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] with [`Reason::NoSession`] if as many sessions are open as the bank keeps, or with another
    /// reason if no shard could open one in time; [`Error::Refused`]; [`Error::Broken`].
    pub fn session(&self) -> Result<Session, Error> {
        Session::open(self.clone())
    }

    /// The balance of an account: that of one moment between call and return, with every transfer that was committed
    /// before the call (linearizable, P5).
    ///
    /// # Errors
    ///
    /// [`Error::Aborted`] without an id if there is no such account; [`Error::Unavailable`] if its shard lacked a majority
    /// until the time-out, or the account was locked by a transfer that nobody finished; [`Error::Refused`];
    /// [`Error::Broken`].
    pub fn balance(&self, account: AccountId) -> Result<u64, Error> {
        match self.ask(Op::Read(account), self.deadline())? {
            Outcome::Balance(balance) => Ok(balance),
            other => unreachable!("the coordinator answers a read with {other:?}"),
        }
    }

    /// What became of an id, of this program's sessions or of anybody's. It asks every shard and changes nothing, so
    /// [`Found::NeverSeen`] may be followed by something else when a copy is still on its way; [`Bank::repeat`] gives an
    /// answer that stays.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if a shard lacked a majority until the time-out; [`Error::Refused`]; [`Error::Broken`].
    pub fn look_up(&self, id: TxnId) -> Result<Found, Error> {
        match self.ask(Op::Lookup(id), self.deadline())? {
            Outcome::Found(found) => Ok(found),
            other => unreachable!("the coordinator answers a question with {other:?}"),
        }
    }

    /// Carries out a transfer under its id, which this or another program had from [`Session::next_id`], if that did not
    /// happen yet: a repetition has no effect and the answer of the first time.
    ///
    /// # Errors
    ///
    /// As of [`Session::submit`].
    pub fn repeat(&self, id: TxnId, transfer: Transfer) -> Result<Receipt, Error> {
        self.repeat_all(&[(id, transfer)]).remove(0)
    }

    /// The same for many, as [`Session::submit_all`] does it.
    pub fn repeat_all(&self, orders: &[(TxnId, Transfer)]) -> Vec<Result<Receipt, Error>> {
        self.carry_out(orders, self.deadline())
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.client.settle();
    }
}
