//! Reading a set file.
//!
//! Columns: set number, transaction, live servers, contact servers (the last one optional). Three shapes occur and are
//! told apart row by row, so that no flag is needed and they may mix:
//!
//! * the set's number and lists stand on its first row only, or are repeated on every row;
//! * commas or tabs separate the columns (decided once, by the first separator outside quotes);
//! * a header, which is a first row whose first field is no integer.
//!
//! Nothing but the header is ever skipped in silence: whatever stands in a field is either understood or an error,
//! because a dropped row would make every later balance wrong without a hint why.
//!
//! Lines are counted here and not by the csv crate: its position of a record is where the search for that record
//! began, before the blank lines and comments in between.

use std::collections::BTreeSet;
use std::fmt;

use csv::{ByteRecord, ReaderBuilder};

use super::{Command, Row, Set, SetFile};
use crate::config::Topology;
use crate::types::{AccountId, NodeId, Transfer};

const COMMANDS: &str = "accepted: \"(from, to, amount)\", (account), F(server), R(server)";
const LIST: &str = "accepted: a quoted list such as \"[S1, S2, n3]\"";

/// What is wrong with a file. Its text is one line: `FILE:LINE: what is wrong; what is accepted`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParseError {
    pub file: String,
    /// From 1.
    pub line: usize,
    pub message: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Even a file name with a line break in it must not break the one line.
        let file: String = self.file.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        write!(f, "{file}:{}: {}", self.line, self.message)
    }
}

impl std::error::Error for ParseError {}

/// Reads a whole file. Servers must be of this `topology`; accounts need not (see [`SetFile::unknown_accounts`]).
pub fn parse(file_name: &str, bytes: &[u8], topology: &Topology) -> Result<SetFile, ParseError> {
    let fail = |line: usize, message: String| ParseError { file: file_name.to_string(), line, message };
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let mut lines = Lines { bytes, offset: 0, line: 1 };
    if let Some(offset) = lone_carriage_return(bytes) {
        let line = lines.advance(offset);
        return Err(fail(line, "a line ends in a lone carriage return; accepted: LF or CRLF".to_string()));
    }

    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .comment(Some(b'#'))
        .delimiter(detect_separator(bytes))
        .from_reader(bytes);
    let mut sets = Sets { topology, done: Vec::new() };
    let mut record = ByteRecord::new();
    let mut first = true;
    loop {
        match reader.read_byte_record(&mut record) {
            Ok(true) => {}
            Ok(false) => break,
            Err(e) => return Err(fail(lines.line, format!("cannot be read: {}", excerpt(&e.to_string())))),
        }
        let start = record.position().map_or(0, |p| p.byte());
        let line = lines.start_of_record(usize::try_from(start).unwrap_or(usize::MAX));
        let fields = Fields::of(&record).map_err(|message| fail(line, message))?;
        if fields.all_empty() {
            continue;
        }
        let header = first && fields.is_header();
        first = false;
        let result = if header { fields.check_header() } else { sets.add_row(line, &fields) };
        result.map_err(|message| fail(line, message))?;
    }
    if sets.done.is_empty() {
        return Err(fail(
            1,
            "no set in this file; accepted: rows such as 1,\"(100, 501, 8)\",\"[S1, S2, S3]\"".to_string(),
        ));
    }
    Ok(SetFile { sets: sets.done })
}

/// The sets read so far. The last one is still open: rows without a number, or with the same one, belong to it.
struct Sets<'a> {
    topology: &'a Topology,
    done: Vec<Set>,
}

impl Sets<'_> {
    fn add_row(&mut self, line: usize, fields: &Fields<'_>) -> Result<(), String> {
        if let Some(extra) = fields.rest.iter().find(|f| !f.is_empty()) {
            return Err(format!(
                "unexpected field {}; accepted: set number, transaction, live servers, contact servers \
                 (fields with commas in quotes)",
                excerpt(extra)
            ));
        }
        let number = if fields.number.is_empty() { None } else { Some(parse_number(fields.number)?) };
        if fields.command.is_empty() {
            return Err(format!("the row has no transaction; {COMMANDS}"));
        }
        let command = self.parse_command(fields.command)?;
        let live = self.parse_optional_list(fields.live, "live servers")?;
        let contacts = self.parse_optional_list(fields.contacts, "contact servers")?;
        if let Some(contacts) = &contacts {
            self.check_contacts(contacts)?;
        }

        let open = self.done.last_mut();
        match (open, number) {
            (Some(set), number) if number.is_none_or(|n| n == set.number) => {
                if live.is_some_and(|live| live != set.live) {
                    return Err(format!(
                        "set {} began with other live servers in line {}; accepted: the same list, an empty field, \
                         or another set number",
                        set.number, set.line
                    ));
                }
                match contacts {
                    Some(contacts) if set.contacts.is_empty() => set.contacts = contacts,
                    Some(contacts) if contacts != set.contacts => {
                        return Err(format!(
                            "set {} has other contact servers above; accepted: the same list or an empty field",
                            set.number
                        ));
                    }
                    _ => {}
                }
                set.rows.push(Row { line, command });
            }
            (_, Some(number)) => {
                let Some(live) = live else {
                    return Err(format!("set {number} has no list of live servers; {LIST}"));
                };
                let contacts = contacts.unwrap_or_default();
                self.done.push(Set { number, line, live, contacts, rows: vec![Row { line, command }] });
            }
            // The first arm takes every row without a number once a set is open.
            (_, None) => {
                return Err(
                    "a row before the first set; accepted: a set number in the first field".to_string()
                );
            }
        }
        Ok(())
    }

    fn parse_command(&self, text: &str) -> Result<Command, String> {
        let malformed = || format!("malformed transaction {}; {COMMANDS}", excerpt(text));
        let (name, inside) = text.split_once('(').ok_or_else(malformed)?;
        let inside = inside.strip_suffix(')').ok_or_else(malformed)?;
        match name.trim_end() {
            "" => {}
            "F" | "f" => return Ok(Command::Fail(self.parse_server(inside)?)),
            "R" | "r" => return Ok(Command::Recover(self.parse_server(inside)?)),
            _ => return Err(malformed()),
        }
        let parts: Vec<&str> = inside.split(',').map(str::trim).collect();
        match parts[..] {
            [account] => Ok(Command::Balance(parse_account(account)?)),
            [from, to, amount] => Ok(Command::Transfer(Transfer {
                from: parse_account(from)?,
                to: parse_account(to)?,
                amount: parse_amount(amount)?,
            })),
            _ => Err(malformed()),
        }
    }

    /// `None` for an empty field; `[]` is a list of no servers.
    fn parse_optional_list(&self, text: &str, what: &str) -> Result<Option<Vec<NodeId>>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        let inside = text
            .strip_prefix('[')
            .and_then(|t| t.strip_suffix(']'))
            .ok_or_else(|| format!("malformed list of {what} {}; {LIST}", excerpt(text)))?
            .trim();
        let inside = inside.strip_suffix(',').unwrap_or(inside);
        let mut servers = BTreeSet::new();
        if !inside.is_empty() {
            for name in inside.split(',') {
                let server = self.parse_server(name)?;
                if !servers.insert(server) {
                    return Err(format!(
                        "{server} stands twice in the list of {what}; accepted: each server once"
                    ));
                }
            }
        }
        Ok(Some(servers.into_iter().collect()))
    }

    fn check_contacts(&self, contacts: &[NodeId]) -> Result<(), String> {
        // Sorted, and clusters are runs of numbers: two of one cluster are neighbours.
        for pair in contacts.windows(2) {
            if self.topology.shard_of_server(pair[0]) == self.topology.shard_of_server(pair[1]) {
                return Err(format!(
                    "the contact servers {} and {} are of one cluster; accepted: at most one of each",
                    pair[0], pair[1]
                ));
            }
        }
        Ok(())
    }

    fn parse_server(&self, text: &str) -> Result<NodeId, String> {
        let text = text.trim();
        let count = self.topology.server_count();
        let digits = text.strip_prefix(['S', 's', 'N', 'n']).filter(|d| is_digits(d)).ok_or_else(|| {
            format!("malformed server {}; accepted: S1…S{count} or n1…n{count}", excerpt(text))
        })?;
        // A number too large for the type is as unknown as one that is too large for the topology.
        let server = digits.parse().ok().map(NodeId).filter(|s| self.topology.contains_server(*s));
        server
            .ok_or_else(|| format!("unknown server {}; accepted: S1…S{count} or n1…n{count}", excerpt(text)))
    }
}

fn parse_number(text: &str) -> Result<u64, String> {
    let number = if is_digits(text) { text.parse().ok() } else { None };
    number.ok_or_else(|| format!("malformed set number {}; accepted: 0 to {}", excerpt(text), u64::MAX))
}

/// Any account number is fine, those outside the bank and 0 included: the servers abort what names them.
fn parse_account(text: &str) -> Result<AccountId, String> {
    let number = if is_digits(text) { text.parse().ok() } else { None };
    number.map(AccountId).ok_or_else(|| {
        format!("malformed account {}; accepted: an integer from 0 to {}", excerpt(text), u64::MAX)
    })
}

fn parse_amount(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| {
        format!("malformed amount {}; accepted: an integer from {} to {}", excerpt(text), i64::MIN, i64::MAX)
    })
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// One row, its fields trimmed. Missing ones are empty.
struct Fields<'a> {
    number: &'a str,
    command: &'a str,
    live: &'a str,
    contacts: &'a str,
    rest: Vec<&'a str>,
}

impl<'a> Fields<'a> {
    fn of(record: &'a ByteRecord) -> Result<Self, String> {
        let mut texts = Vec::with_capacity(record.len());
        for field in record {
            let text = std::str::from_utf8(field).map_err(|_| {
                format!("not UTF-8: {}; accepted: text", excerpt(&String::from_utf8_lossy(field)))
            })?;
            texts.push(text.trim());
        }
        let at = |i: usize| texts.get(i).copied().unwrap_or("");
        Ok(Fields {
            number: at(0),
            command: at(1),
            live: at(2),
            contacts: at(3),
            rest: texts.get(4..).unwrap_or(&[]).to_vec(),
        })
    }

    fn all(&self) -> impl Iterator<Item = &'a str> {
        [self.number, self.command, self.live, self.contacts].into_iter().chain(self.rest.iter().copied())
    }

    fn all_empty(&self) -> bool {
        self.all().all(str::is_empty)
    }

    /// A row with a transaction in it is data with a bad set number, never a header: skipping it would lose money
    /// movements in silence.
    fn is_header(&self) -> bool {
        let digits = self.number.strip_prefix(['+', '-']).unwrap_or(self.number);
        let looks_like_command = self.command.starts_with('(')
            || (self.command.starts_with(['F', 'f', 'R', 'r'])
                && self.command[1..].trim_start().starts_with('(')
                && self.command.ends_with(')'));
        !is_digits(digits) && !looks_like_command
    }

    /// A quote that is never closed would make the rows behind it part of the header.
    fn check_header(&self) -> Result<(), String> {
        match self.all().find(|f| f.contains('\n')) {
            Some(field) => Err(format!(
                "a quote in the header is not closed on its line: {}; accepted: a header of one line",
                excerpt(field)
            )),
            None => Ok(()),
        }
    }
}

/// Text of the file as it may stand in a message: quoted, in one line, not too long.
fn excerpt(text: &str) -> String {
    const LONGEST: usize = 40;
    let mut chars = text.chars();
    let start: String = chars.by_ref().take(LONGEST).collect();
    let more = if chars.next().is_some() { "…" } else { "" };
    format!("{start:?}{more}")
}

/// A comma or a tab, whichever comes first outside quotes in a line that is neither blank nor a comment.
fn detect_separator(bytes: &[u8]) -> u8 {
    for line in bytes.split(|b| *b == b'\n') {
        if line.starts_with(b"#") || line.trim_ascii().is_empty() {
            continue;
        }
        let mut quoted = false;
        for b in line {
            match b {
                b'"' => quoted = !quoted,
                b',' | b'\t' if !quoted => return *b,
                _ => {}
            }
        }
    }
    b','
}

/// Where a carriage return ends a line by itself. The csv crate would end a row there but not a comment, so that a
/// comment could swallow rows.
fn lone_carriage_return(bytes: &[u8]) -> Option<usize> {
    bytes.windows(2).position(|pair| pair[0] == b'\r' && !matches!(pair[1], b'\r' | b'\n'))
}

/// Counts lines up to an offset that only grows.
struct Lines<'a> {
    bytes: &'a [u8],
    offset: usize,
    /// The line, from 1, in which `offset` lies.
    line: usize,
}

impl Lines<'_> {
    fn advance(&mut self, offset: usize) -> usize {
        let to = offset.clamp(self.offset, self.bytes.len());
        self.line += self.bytes[self.offset..to].iter().filter(|b| **b == b'\n').count();
        self.offset = to;
        self.line
    }

    /// The line of the first row at or behind `offset`, past the same line ends and comments that the reader skips.
    fn start_of_record(&mut self, offset: usize) -> usize {
        self.advance(offset);
        while let Some(b) = self.bytes.get(self.offset) {
            let skip = match b {
                b'\r' | b'\n' => 1,
                b'#' => self.bytes[self.offset..].iter().take_while(|b| **b != b'\n').count(),
                _ => break,
            };
            self.advance(self.offset + skip);
        }
        self.line
    }
}
