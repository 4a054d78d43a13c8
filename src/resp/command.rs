//! Arguments → commands. Names and keywords may be in capitals or not.
//!
//! | request | |
//! |---|---|
//! | `SESSION` | opens a session, whose transfers can be sent again safely |
//! | `TRANSFER from to amount [ID session:seq]` | moves money; the same ID again is answered with what became of it |
//! | `BALANCE account [LOCAL]` | `LOCAL`: as one server sees it |
//! | `TXN session:seq` | how a transfer ended |
//! | `PING [message]`, `ECHO message`, `QUIT`, `SELECT 0` | as in Redis |
//! | `HELLO [2\|3 [AUTH user password] [SETNAME name]]`, `INFO [section ...]` | as in Redis |
//! | `COMMAND [COUNT\|DOCS\|...]`, `CLIENT ID\|GETNAME\|SETNAME\|SETINFO`, `CONFIG GET name` | what tools and libraries ask first |
//!
//! Numbers are decimal and may begin with zeros. A session is written as the bank shows it (`D1-2`) or as its plain number.

use crate::resp::codec::{MAX_ARG_BYTES, Protocol, Reply, is_word, number};
use crate::types::{AccountId, Transfer, TxnId};

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Command {
    /// Open a session.
    Session,
    /// The amount is from 0 to `i64::MAX`; nothing else about the transfer is known to be right.
    Transfer {
        transfer: Transfer,
        /// Its identity, if the client keeps a session.
        id: Option<TxnId>,
    },
    Balance {
        account: AccountId,
        /// What one server has applied, instead of a linearizable read.
        local: bool,
    },
    /// How a transfer ended.
    Txn(TxnId),
    Ping(Option<Vec<u8>>),
    Hello {
        /// `None`: as before.
        protocol: Option<Protocol>,
        /// A user and a password were given. They are not kept, for the bank has nothing to compare them with.
        auth: bool,
        /// See [`Client::SetName`].
        name: Option<String>,
    },
    /// Sections, in lower case.
    Info(Vec<String>),
    /// What is asked about the commands, in lower case; `None`: everything.
    Command(Option<String>),
    Quit,
    Echo(Vec<u8>),
    /// Use the only database, number 0.
    Select,
    Client(Client),
    /// The value of one parameter, its name in lower case.
    ConfigGet(String),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Client {
    Id,
    GetName,
    /// Printable ASCII without spaces; empty: no name any more.
    SetName(String),
    /// The client's library and its version, not kept.
    SetInfo,
}

/// What a request asks for, or an error reply; the connection stays good.
///
/// Of an ID only the form is checked: whether the bank has the shard, whether the session was opened, and how far its
/// sequences may go is for the caller to say.
pub fn parse(args: &[Vec<u8>]) -> Result<Command, Reply> {
    let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
    let Some((&name, rest)) = args.split_first() else { return Err(unknown_command(b"", &[])) };
    match (lower(name).as_str(), rest) {
        ("session", []) => Ok(Command::Session),
        ("transfer", [from, to, amount]) => transfer(from, to, amount, None),
        ("transfer", [from, to, amount, keyword, id]) => {
            expect_word(keyword, "ID")?;
            transfer(from, to, amount, Some(id))
        }
        ("balance", [account]) => {
            Ok(Command::Balance { account: parse_account(account, "account")?, local: false })
        }
        ("balance", [account, keyword]) => {
            expect_word(keyword, "LOCAL")?;
            Ok(Command::Balance { account: parse_account(account, "account")?, local: true })
        }
        ("txn", [id]) => Ok(Command::Txn(parse_id(id)?)),
        ("ping", []) => Ok(Command::Ping(None)),
        ("ping", [message]) => Ok(Command::Ping(Some(message.to_vec()))),
        ("hello", []) => Ok(Command::Hello { protocol: None, auth: false, name: None }),
        ("hello", [version, options @ ..]) => hello(version, options),
        ("info", sections) => Ok(Command::Info(sections.iter().map(|section| lower(section)).collect())),
        ("command", asked) => Ok(Command::Command(asked.first().map(|asked| lower(asked)))),
        ("quit", _) => Ok(Command::Quit),
        ("echo", [message]) => Ok(Command::Echo(message.to_vec())),
        ("select", [database]) => match number(database) {
            Some(0) => Ok(Command::Select),
            Some(_) => Err(error("DB index is out of range, there is 0 only")),
            None => Err(error("invalid DB index")),
        },
        ("client", [what, rest @ ..]) => client(what, rest),
        ("config", [what, rest @ ..]) => match (lower(what).as_str(), rest) {
            ("get", [name]) => Ok(Command::ConfigGet(lower(name))),
            ("get", _) => Err(wrong_count("config|get")),
            _ => Err(unknown_subcommand(what, "CONFIG", "GET")),
        },
        (
            name @ ("session" | "transfer" | "balance" | "txn" | "ping" | "echo" | "select" | "client"
            | "config"),
            _,
        ) => Err(wrong_count(name)),
        _ => Err(unknown_command(name, rest)),
    }
}

fn transfer(from: &[u8], to: &[u8], amount: &[u8], id: Option<&[u8]>) -> Result<Command, Reply> {
    let (from, to) = (parse_account(from, "from")?, parse_account(to, "to")?);
    let amount = number(amount)
        .and_then(|amount| i64::try_from(amount).ok())
        .ok_or_else(|| not_a_number("amount", i64::MAX as u64, amount))?;
    Ok(Command::Transfer { transfer: Transfer { from, to, amount }, id: id.map(parse_id).transpose()? })
}

fn hello(version: &[u8], options: &[&[u8]]) -> Result<Command, Reply> {
    let protocol = match number(version) {
        Some(2) => Protocol::Resp2,
        Some(3) => Protocol::Resp3,
        // Libraries look for this code, and fall back to RESP2.
        Some(_) => return Err(Reply::Error("NOPROTO unsupported protocol version".into())),
        None => return Err(error("Protocol version is not an integer or out of range")),
    };
    let (mut auth, mut name) = (false, None);
    let mut options = options;
    loop {
        options = match options {
            [] => return Ok(Command::Hello { protocol: Some(protocol), auth, name }),
            [option, _user, _password, rest @ ..] if is_word(option, "AUTH") => {
                auth = true;
                rest
            }
            [option, new, rest @ ..] if is_word(option, "SETNAME") => {
                name = Some(parse_name(new)?);
                rest
            }
            [option, ..] => {
                return Err(error(&format!("Syntax error in HELLO option '{}'", show(option))));
            }
        };
    }
}

fn client(what: &[u8], rest: &[&[u8]]) -> Result<Command, Reply> {
    let client = match (lower(what).as_str(), rest) {
        ("id", []) => Client::Id,
        ("getname", []) => Client::GetName,
        ("setname", [name]) => Client::SetName(parse_name(name)?),
        ("setinfo", [_attribute, _value]) => Client::SetInfo,
        (what @ ("id" | "getname" | "setname" | "setinfo"), _) => {
            return Err(wrong_count(&format!("client|{what}")));
        }
        _ => return Err(unknown_subcommand(what, "CLIENT", "ID, GETNAME, SETNAME, SETINFO")),
    };
    Ok(Command::Client(client))
}

// ---- Arguments -----------------------------------------------------------------------------------------------------

fn parse_account(word: &[u8], what: &str) -> Result<AccountId, Reply> {
    number(word).map(AccountId).ok_or_else(|| not_a_number(what, u64::MAX, word))
}

fn parse_id(word: &[u8]) -> Result<TxnId, Reply> {
    let shape = "ID must be SESSION:SEQUENCE as in D1-2:7, with a sequence from 1";
    let id = std::str::from_utf8(word).ok().and_then(|text| text.parse().ok());
    id.ok_or_else(|| error(&format!("{shape}, not '{}'", show(word))))
}

/// As Redis has it: the name is shown in lists, one client to a line.
fn parse_name(word: &[u8]) -> Result<String, Reply> {
    let name = String::from_utf8(word.to_vec()).ok();
    name.filter(|name| name.bytes().all(|byte| byte.is_ascii_graphic()))
        .ok_or_else(|| error("Client names cannot contain spaces, newlines or special characters."))
}

fn lower(word: &[u8]) -> String {
    String::from_utf8_lossy(word).to_ascii_lowercase()
}

// ---- Errors --------------------------------------------------------------------------------------------------------

/// The most bytes of a client's own that an error repeats.
const SHOWN_BYTES: usize = MAX_ARG_BYTES / 2;

fn show(word: &[u8]) -> String {
    String::from_utf8_lossy(&word[..word.len().min(SHOWN_BYTES)]).into_owned()
}

fn error(text: &str) -> Reply {
    Reply::Error(format!("ERR {text}"))
}

fn not_a_number(what: &str, max: u64, word: &[u8]) -> Reply {
    error(&format!("{what} must be a whole number from 0 to {max}, not '{}'", show(word)))
}

fn expect_word(word: &[u8], expected: &str) -> Result<(), Reply> {
    let text = || format!("syntax error: expected {expected}, not '{}'", show(word));
    is_word(word, expected).then_some(()).ok_or_else(|| error(&text()))
}

fn wrong_count(name: &str) -> Reply {
    error(&format!("wrong number of arguments for '{name}' command"))
}

fn unknown_subcommand(word: &[u8], command: &str, known: &str) -> Reply {
    error(&format!("unknown subcommand '{}' of {command}, which has {known}", show(word)))
}

/// In the words of Redis, to the space at the end, for libraries that look for them.
fn unknown_command(name: &[u8], args: &[&[u8]]) -> Reply {
    let mut shown = String::new();
    for arg in args {
        let room = SHOWN_BYTES.saturating_sub(shown.len());
        if room == 0 {
            break;
        }
        shown += &format!("'{}' ", show(&arg[..arg.len().min(room)]));
    }
    error(&format!("unknown command '{}', with args beginning with: {shown}", show(name)))
}
