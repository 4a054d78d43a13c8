//! Bytes ↔ requests and replies.
//!
//! A request is an array of bulk strings (`*2\r\n$4\r\nPING\r\n$2\r\nhi\r\n`), or one line of words (`PING hi\r\n`), an
//! *inline command*, as somebody types it over telnet. A length beyond the limits is refused when it is announced, before
//! anything of that length is waited for; that is why no parser crate stands here.

use std::borrow::Cow;
use std::fmt;

/// The most arguments of a request, its name included.
pub const MAX_ARGS: usize = 16;
/// The most bytes of one argument.
pub const MAX_ARG_BYTES: usize = 256;
/// The most bytes of an inline command, its line end included.
pub const MAX_INLINE_BYTES: usize = 1024;
/// The most bytes of a line that announces a length, its type and line end included.
const MAX_LENGTH_LINE_BYTES: usize = 16;
/// No request is longer. From as many bytes [`decode`] always gets a request or an error.
pub const MAX_REQUEST_BYTES: usize =
    MAX_LENGTH_LINE_BYTES + MAX_ARGS * (MAX_LENGTH_LINE_BYTES + MAX_ARG_BYTES + CRLF.len());

const CRLF: &[u8] = b"\r\n";

/// What a request consists of, its name first.
pub type Args = Vec<Vec<u8>>;

/// Bytes that are no request. Where the next one would begin is unknown, so the connection is of no more use.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ProtocolError {
    /// The number of arguments is no decimal number.
    InvalidCount,
    TooManyArguments,
    /// An argument begins with this byte instead of `$`.
    ExpectedBulk(u8),
    /// The length of an argument is no decimal number.
    InvalidLength,
    ArgumentTooLong,
    /// No line end follows the announced bytes of an argument.
    Unterminated,
    InlineTooLong,
    /// An inline command has a quotation mark, which would have to be taken literally.
    Quoted,
    /// A web page made a browser send this. Its body could have transfers in it.
    Http,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProtocolError::InvalidCount => f.write_str("invalid multibulk length"),
            ProtocolError::TooManyArguments => write!(f, "more than {MAX_ARGS} arguments"),
            ProtocolError::ExpectedBulk(byte) => {
                write!(f, "expected '$', got '{}'", char::from(*byte).escape_default())
            }
            ProtocolError::InvalidLength => f.write_str("invalid bulk length"),
            ProtocolError::ArgumentTooLong => write!(f, "an argument of more than {MAX_ARG_BYTES} bytes"),
            ProtocolError::Unterminated => f.write_str("an argument is longer than announced"),
            ProtocolError::InlineTooLong => {
                write!(f, "an inline command of more than {MAX_INLINE_BYTES} bytes")
            }
            ProtocolError::Quoted => f.write_str("no quotes in inline commands, send an array"),
            ProtocolError::Http => f.write_str("this is not a web server"),
        }
    }
}

impl std::error::Error for ProtocolError {}

/// The last reply on a connection.
impl From<ProtocolError> for Reply {
    fn from(error: ProtocolError) -> Reply {
        Reply::Error(format!("ERR Protocol error: {error}"))
    }
}

/// The first request of `received`, as its arguments and the bytes that it took; `None` if its end is missing.
///
/// No arguments (an empty line or array) are a request too, to be dropped without a reply.
pub fn decode(received: &[u8]) -> Result<Option<(Args, usize)>, ProtocolError> {
    let mut rest = received;
    let args = match received.first() {
        None => Err(Stop::Incomplete),
        Some(b'*') => take_array(&mut rest),
        Some(_) => take_inline(&mut rest),
    };
    match args {
        Ok(args) => {
            let args = args.into_iter().map(<[u8]>::to_vec).collect();
            Ok(Some((args, received.len() - rest.len())))
        }
        Err(Stop::Incomplete) => Ok(None),
        Err(Stop::Refused(error)) => Err(error),
    }
}

/// Why a request is not read to its end.
enum Stop {
    Incomplete,
    Refused(ProtocolError),
}

impl From<ProtocolError> for Stop {
    fn from(error: ProtocolError) -> Stop {
        Stop::Refused(error)
    }
}

fn take_array<'a>(rest: &mut &'a [u8]) -> Result<Vec<&'a [u8]>, Stop> {
    let count = take_length(rest, ProtocolError::InvalidCount)?;
    if count > MAX_ARGS {
        return Err(ProtocolError::TooManyArguments.into());
    }
    (0..count).map(|_| take_bulk(rest)).collect()
}

fn take_bulk<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Stop> {
    match rest.first() {
        None => return Err(Stop::Incomplete),
        Some(b'$') => {}
        Some(&other) => return Err(ProtocolError::ExpectedBulk(other).into()),
    }
    let length = take_length(rest, ProtocolError::InvalidLength)?;
    if length > MAX_ARG_BYTES {
        return Err(ProtocolError::ArgumentTooLong.into());
    }
    let arg = rest.get(..length).ok_or(Stop::Incomplete)?;
    let end = &rest[length..rest.len().min(length + CRLF.len())];
    if !CRLF.starts_with(end) {
        return Err(ProtocolError::Unterminated.into());
    }
    if end.len() < CRLF.len() {
        return Err(Stop::Incomplete);
    }
    *rest = &rest[length + CRLF.len()..];
    Ok(arg)
}

/// The number on a line such as `*3` or `$12`, of which the first byte is the type.
fn take_length(rest: &mut &[u8], invalid: ProtocolError) -> Result<usize, Stop> {
    let start = &rest[..rest.len().min(MAX_LENGTH_LINE_BYTES)];
    let Some(newline) = start.iter().position(|byte| *byte == b'\n') else {
        return Err(if start.len() < MAX_LENGTH_LINE_BYTES { Stop::Incomplete } else { invalid.into() });
    };
    let digits = start[1..newline].strip_suffix(b"\r").unwrap_or_default();
    let length = number(digits).and_then(|length| usize::try_from(length).ok()).ok_or(invalid)?;
    *rest = &rest[newline + 1..];
    Ok(length)
}

fn take_inline<'a>(rest: &mut &'a [u8]) -> Result<Vec<&'a [u8]>, Stop> {
    let start = &rest[..rest.len().min(MAX_INLINE_BYTES)];
    let Some(newline) = start.iter().position(|byte| *byte == b'\n') else {
        let is_cut = start.len() < MAX_INLINE_BYTES;
        return Err(if is_cut { Stop::Incomplete } else { ProtocolError::InlineTooLong.into() });
    };
    let line = &start[..newline];
    *rest = &rest[newline + 1..];
    let words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let args: Vec<&[u8]> = words.take(MAX_ARGS + 1).collect();
    // Every request that a browser sends to another site without asking it first has one of these before its body.
    if args.first().is_some_and(|name| is_word(name, "POST") || is_word(name, "Host:")) {
        return Err(ProtocolError::Http.into());
    }
    if args.len() > MAX_ARGS {
        return Err(ProtocolError::TooManyArguments.into());
    }
    if args.iter().any(|arg| arg.len() > MAX_ARG_BYTES) {
        return Err(ProtocolError::ArgumentTooLong.into());
    }
    if line.iter().any(|byte| matches!(byte, b'"' | b'\'')) {
        return Err(ProtocolError::Quoted.into());
    }
    Ok(args)
}

/// Decimal digits and nothing else, of which any may lead as zeros. `None` also for what does not fit.
pub(super) fn number(digits: &[u8]) -> Option<u64> {
    // The parser of the standard library would take a plus sign.
    let digits = digits.iter().all(u8::is_ascii_digit).then_some(digits)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Whether these bytes are the word, in capitals or not.
pub(super) fn is_word(bytes: &[u8], word: &str) -> bool {
    bytes.eq_ignore_ascii_case(word.as_bytes())
}

/// Which form replies take.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub enum Protocol {
    #[default]
    Resp2,
    Resp3,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Reply {
    Simple(Cow<'static, str>),
    /// Begins with a code in capitals.
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Null,
    Array(Vec<Reply>),
    /// In order; with RESP2 an array in which keys and values alternate.
    Map(Vec<(Reply, Reply)>),
}

impl Reply {
    /// What a request is answered with if there is nothing to say.
    pub const OK: Reply = Reply::Simple(Cow::Borrowed("OK"));

    /// Appends its bytes to `out`.
    pub fn encode(&self, protocol: Protocol, out: &mut Vec<u8>) {
        match self {
            Reply::Simple(text) => put_line(b'+', text, out),
            Reply::Error(text) => put_line(b'-', text, out),
            Reply::Integer(number) => put_line(b':', &number.to_string(), out),
            Reply::Bulk(bytes) => {
                put_length(b'$', bytes.len(), out);
                out.extend_from_slice(bytes);
                out.extend_from_slice(CRLF);
            }
            Reply::Null => match protocol {
                Protocol::Resp2 => put_line(b'$', "-1", out),
                Protocol::Resp3 => put_line(b'_', "", out),
            },
            Reply::Array(items) => {
                put_length(b'*', items.len(), out);
                items.iter().for_each(|item| item.encode(protocol, out));
            }
            Reply::Map(pairs) => {
                match protocol {
                    Protocol::Resp2 => put_length(b'*', 2 * pairs.len(), out),
                    Protocol::Resp3 => put_length(b'%', pairs.len(), out),
                }
                for (key, value) in pairs {
                    key.encode(protocol, out);
                    value.encode(protocol, out);
                }
            }
        }
    }
}

fn put_length(kind: u8, length: usize, out: &mut Vec<u8>) {
    put_line(kind, &length.to_string(), out);
}

/// An error quotes what its client sent, and a line end in it would begin another reply.
fn put_line(kind: u8, text: &str, out: &mut Vec<u8>) {
    out.push(kind);
    out.extend(text.bytes().map(|byte| if CRLF.contains(&byte) { b' ' } else { byte }));
    out.extend_from_slice(CRLF);
}
