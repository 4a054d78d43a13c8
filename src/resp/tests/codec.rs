//! Requests on their way through pieces of any size, the limits, and replies against literal bytes and another
//! implementation.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use redis_protocol::resp2::types::Resp2Frame;
use redis_protocol::{resp2, resp3};

use super::{error, words};
use crate::resp::codec::{MAX_ARG_BYTES, MAX_ARGS, MAX_INLINE_BYTES, MAX_REQUEST_BYTES};
use crate::resp::{Args, Protocol, ProtocolError, Reply, decode};

type Decoded = Result<Option<(Args, usize)>, ProtocolError>;

/// A request as client libraries write it.
fn array(args: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        bytes.extend(format!("${}\r\n", arg.len()).into_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

fn inline(args: &[Vec<u8>], line_end: &str) -> Vec<u8> {
    [&args.join(&b' '), line_end.as_bytes()].concat()
}

fn whole(line: &str, consumed: usize) -> Decoded {
    Ok(Some((words(line), consumed)))
}

/// All requests of a stream that arrives in pieces of these sizes, over and over.
fn decode_pieces(stream: &[u8], sizes: &[usize]) -> Result<Vec<Args>, ProtocolError> {
    let (mut rest, mut sizes) = (stream, sizes.iter().cycle());
    let (mut buffer, mut requests) = (Vec::new(), Vec::new());
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(rest.len().min(*sizes.next().expect("a cycle")));
        rest = later;
        buffer.extend_from_slice(piece);
        while let Some((args, consumed)) = decode(&buffer)? {
            buffer.drain(..consumed);
            requests.push(args);
        }
    }
    assert!(buffer.is_empty(), "{} bytes are left", buffer.len());
    Ok(requests)
}

// ---- Requests ------------------------------------------------------------------------------------------------------

#[test]
fn arrays_and_lines() {
    assert_eq!(decode(b""), Ok(None));
    assert_eq!(decode(b"*2\r\n$4\r\nPING\r\n$2\r\nhi\r\n"), whole("PING hi", 22));
    assert_eq!(decode(b"PING\r\n"), whole("PING", 6));
    assert_eq!(decode(b"PING\n"), whole("PING", 5));
    assert_eq!(decode(b"  balance \t 7 \r\n"), whole("balance 7", 16));
    assert_eq!(decode(b"PING\r\nPING\r\n"), whole("PING", 6), "the first of two");
    assert_eq!(decode(b"*1\r\n$4\r\nPING\r\n*1\r\n$"), whole("PING", 14), "with the beginning of the next");
    assert_eq!(decode(b"*01\r\n$004\r\nPING\r\n"), whole("PING", 17));
    assert_eq!(decode(b"*1\r\n$0\r\n\r\n"), Ok(Some((vec![vec![]], 10))));
    assert_eq!(decode(b"*1\r\n$2\r\n\r\n\r\n"), Ok(Some((vec![b"\r\n".to_vec()], 12))), "bytes are bytes");
}

#[test]
fn empty_requests_are_consumed() {
    for bytes in ["\r\n", "\n", " \t\r\n", "*0\r\n"] {
        assert_eq!(decode(bytes.as_bytes()), whole("", bytes.len()), "{bytes:?}");
    }
}

#[test]
fn what_is_no_request_is_refused() {
    let table: &[(&[u8], ProtocolError)] = &[
        (b"*\r\n", ProtocolError::InvalidCount),
        (b"*x\r\n", ProtocolError::InvalidCount),
        (b"*-1\r\n", ProtocolError::InvalidCount),
        (b"*+1\r\n", ProtocolError::InvalidCount),
        (b"*1\n", ProtocolError::InvalidCount),
        (b"*1 \r\n", ProtocolError::InvalidCount),
        (b"*1\r\r\n", ProtocolError::InvalidCount),
        (b"*000000000000000", ProtocolError::InvalidCount),
        (b"*99999999999999\r\n", ProtocolError::InvalidCount),
        (b"*9999999999999\r\n", ProtocolError::TooManyArguments),
        (b"*17\r\n", ProtocolError::TooManyArguments),
        (b"*1\r\n:", ProtocolError::ExpectedBulk(b':')),
        (b"*1\r\n*1\r\n", ProtocolError::ExpectedBulk(b'*')),
        (b"*1\r\n$-1\r\n", ProtocolError::InvalidLength),
        (b"*1\r\n$\r\n", ProtocolError::InvalidLength),
        (b"*1\r\n$000000000000000", ProtocolError::InvalidLength),
        (b"*1\r\n$257\r\n", ProtocolError::ArgumentTooLong),
        (b"*1\r\n$4\r\nPINGx", ProtocolError::Unterminated),
        (b"*1\r\n$4\r\nPING\rx", ProtocolError::Unterminated),
        (b"*1\r\n$4\r\nPING\n", ProtocolError::Unterminated),
        (b"ECHO 'a b'\r\n", ProtocolError::Quoted),
        (b"ECHO \"a\r\n", ProtocolError::Quoted),
        (b"1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\r\n", ProtocolError::TooManyArguments),
        (b"POST / HTTP/1.1\r\n", ProtocolError::Http),
        (b"host: localhost:6379\r\n", ProtocolError::Http),
    ];
    for (bytes, expected) in table {
        assert_eq!(decode(bytes), Err(*expected), "{:?}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn an_error_becomes_the_last_reply() {
    let table = [
        (ProtocolError::InvalidCount, "invalid multibulk length"),
        (ProtocolError::TooManyArguments, "more than 16 arguments"),
        (ProtocolError::ExpectedBulk(b'*'), "expected '$', got '*'"),
        (ProtocolError::ExpectedBulk(b'\n'), "expected '$', got '\\n'"),
        (ProtocolError::InvalidLength, "invalid bulk length"),
        (ProtocolError::ArgumentTooLong, "an argument of more than 256 bytes"),
        (ProtocolError::Unterminated, "an argument is longer than announced"),
        (ProtocolError::InlineTooLong, "an inline command of more than 1024 bytes"),
        (ProtocolError::Quoted, "no quotes in inline commands, send an array"),
        (ProtocolError::Http, "this is not a web server"),
    ];
    for (refused, text) in table {
        assert_eq!(Reply::from(refused), error(&format!("ERR Protocol error: {text}")));
    }
}

#[test]
fn the_limits_are_exact() {
    let largest = vec![vec![b'x'; MAX_ARG_BYTES]; MAX_ARGS];
    let bytes = array(&largest);
    assert_eq!(decode(&bytes), Ok(Some((largest, bytes.len()))));
    assert_eq!(decode(format!("${}", "x".repeat(MAX_ARG_BYTES - 1)).as_bytes()), Ok(None));

    let line = |args: usize, bytes: usize| {
        let all = inline(&vec![vec![b'x'; bytes]; args], "\r\n");
        (all.len(), decode(&all))
    };
    assert_eq!(line(1, MAX_ARG_BYTES).1.map(|found| found.is_some()), Ok(true));
    assert_eq!(line(1, MAX_ARG_BYTES + 1).1, Err(ProtocolError::ArgumentTooLong));
    assert_eq!(line(MAX_ARGS, 1).1.map(|found| found.is_some()), Ok(true));
    let full = [b"PING".to_vec(), vec![b' '; MAX_INLINE_BYTES - 5], b"\n".to_vec()].concat();
    assert_eq!(decode(&full), whole("PING", MAX_INLINE_BYTES));
    assert_eq!(decode(&full[..MAX_INLINE_BYTES - 1]), Ok(None));
    let longer = [b" ", full.as_slice()].concat();
    assert_eq!(
        decode(&longer[..MAX_INLINE_BYTES]),
        Err(ProtocolError::InlineTooLong),
        "no need to wait for its end"
    );
    assert_eq!(decode(&longer), Err(ProtocolError::InlineTooLong));
}

/// Bytes of an argument, among them those that mean something elsewhere.
fn args() -> impl Strategy<Value = Args> {
    let byte = prop_oneof![any::<u8>(), prop::sample::select(b"\r\n*$ 0".to_vec())];
    vec(vec(byte, 0..=MAX_ARG_BYTES), 0..=MAX_ARGS)
}

/// Words that an inline command can have.
fn line() -> impl Strategy<Value = Args> {
    let word = vec(prop::sample::select(b"azAZ019:-$*\x80\0".to_vec()), 1..40);
    let is_line = |args: &Args| args.first().is_none_or(|first| first[0] != b'*');
    vec(word, 0..=MAX_ARGS).prop_filter("an array", is_line)
}

/// A request, and its bytes in one of three spellings.
fn request() -> impl Strategy<Value = (Args, Vec<u8>)> {
    let in_lines = |end: &'static str| line().prop_map(move |args| (args.clone(), inline(&args, end)));
    prop_oneof![args().prop_map(|args| (args.clone(), array(&args))), in_lines("\r\n"), in_lines("\n")]
}

/// Bytes that go astray at every place in the decoder.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec!["*", "$", "\r\n", "*1\r\n", "*2\r\n$1\r\n", "$3\r\nabc\r\n", "$0\r\n", "PING", "'"])
            .prop_map(|text| text.as_bytes().to_vec()),
        1 => any::<u64>().prop_map(|number| number.to_string().into_bytes()),
        1 => vec(any::<u8>(), 0..8),
        1 => (0..5000usize).prop_map(|length| vec![b'0'; length]),
    ];
    prop_oneof![vec(any::<u8>(), 0..200), vec(piece, 0..20).prop_map(|pieces| pieces.concat())]
}

proptest! {
    /// Whatever the pieces in which they arrive, requests come out as they went in, one after the other.
    #[test]
    fn decoding_inverts_encoding(
        requests in vec(request(), 1..6),
        sizes in vec(1..600usize, 1..20),
    ) {
        let (args, bytes): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
        prop_assert_eq!(decode_pieces(&bytes.concat(), &sizes), Ok(args.clone()));
        prop_assert_eq!(decode_pieces(&bytes.concat(), &[1]), Ok(args));
    }

    /// No bytes make it panic, wait for more than the longest request, or change its mind when more arrive.
    #[test]
    fn any_bytes_are_judged_once_and_soon(bytes in hostile()) {
        let judged = (0..=bytes.len()).map(|length| decode(&bytes[..length]));
        let mut judged = judged.skip_while(|found| *found == Ok(None));
        match judged.next() {
            None => prop_assert!(bytes.len() < MAX_REQUEST_BYTES),
            Some(first) => {
                if let Ok(Some((args, consumed))) = &first {
                    prop_assert!(args.len() <= MAX_ARGS && args.iter().all(|arg| arg.len() <= MAX_ARG_BYTES));
                    prop_assert_eq!(bytes.len() - judged.by_ref().count(), *consumed, "as soon as it is there");
                }
                prop_assert_eq!(decode(&bytes), first);
            }
        }
    }

    /// Another implementation writes requests in the same way.
    #[test]
    fn requests_of_another_implementation_are_read(args in args()) {
        let items = args.iter().map(|arg| resp2::types::OwnedFrame::BulkString(arg.clone())).collect();
        let frame = resp2::types::OwnedFrame::Array(items);
        let mut bytes = vec![0; frame.encode_len(false)];
        let length = resp2::encode::encode(&mut bytes, &frame, false).expect("enough room");
        prop_assert_eq!(decode(&bytes), Ok(Some((args, length))));
    }
}

// ---- Replies -------------------------------------------------------------------------------------------------------

fn encoded(reply: &Reply, protocol: Protocol) -> Vec<u8> {
    let mut out = b"before".to_vec();
    reply.encode(protocol, &mut out);
    assert!(out.starts_with(b"before"), "it appends");
    out.split_off(6)
}

#[test]
fn replies_in_both_protocols() {
    let simple = |text: &'static str| Reply::Simple(text.into());
    let map =
        Reply::Map(vec![(simple("a"), Reply::Null), (Reply::Bulk(b"b".to_vec()), Reply::Array(vec![]))]);
    let table: &[(Reply, &str, &str)] = &[
        (Reply::OK, "+OK\r\n", "+OK\r\n"),
        (simple("a\r\n+b"), "+a  +b\r\n", "+a  +b\r\n"),
        (error("ERR a\rb\n"), "-ERR a b \r\n", "-ERR a b \r\n"),
        (Reply::Integer(0), ":0\r\n", ":0\r\n"),
        (Reply::Integer(i64::MIN), ":-9223372036854775808\r\n", ":-9223372036854775808\r\n"),
        (Reply::Bulk(vec![]), "$0\r\n\r\n", "$0\r\n\r\n"),
        (Reply::Bulk(b"a\r\nb".to_vec()), "$4\r\na\r\nb\r\n", "$4\r\na\r\nb\r\n"),
        (Reply::Null, "$-1\r\n", "_\r\n"),
        (Reply::Array(vec![]), "*0\r\n", "*0\r\n"),
        (Reply::Array(vec![Reply::Integer(1), Reply::Null]), "*2\r\n:1\r\n$-1\r\n", "*2\r\n:1\r\n_\r\n"),
        (Reply::Map(vec![]), "*0\r\n", "%0\r\n"),
        (map, "*4\r\n+a\r\n$-1\r\n$1\r\nb\r\n*0\r\n", "%2\r\n+a\r\n_\r\n$1\r\nb\r\n*0\r\n"),
    ];
    for (reply, resp2, resp3) in table {
        assert_eq!(String::from_utf8_lossy(&encoded(reply, Protocol::Resp2)), *resp2, "{reply:?}");
        assert_eq!(String::from_utf8_lossy(&encoded(reply, Protocol::Resp3)), *resp3, "{reply:?}");
    }
    assert_eq!(Protocol::default(), Protocol::Resp2, "what a connection begins with");
}

fn any_reply() -> impl Strategy<Value = Reply> {
    let text = || "[ -~é]{0,20}";
    let leaf = prop_oneof![
        text().prop_map(|text| Reply::Simple(text.into())),
        text().prop_map(Reply::Error),
        any::<i64>().prop_map(Reply::Integer),
        vec(any::<u8>(), 0..40).prop_map(Reply::Bulk),
        Just(Reply::Null),
    ];
    leaf.prop_recursive(3, 40, 6, |inner| {
        // The other implementation keeps one value of a key.
        let pairs = btree_map(vec(any::<u8>(), 0..6), inner.clone(), 0..6);
        let map = |(key, value)| (Reply::Bulk(key), value);
        prop_oneof![
            vec(inner, 0..6).prop_map(Reply::Array),
            pairs.prop_map(move |pairs| Reply::Map(pairs.into_iter().map(map).collect())),
        ]
    })
}

fn in_resp2(reply: &Reply) -> resp2::types::OwnedFrame {
    use resp2::types::OwnedFrame as Frame;
    match reply {
        Reply::Simple(text) => Frame::SimpleString(text.as_bytes().to_vec()),
        Reply::Error(text) => Frame::Error(text.clone()),
        Reply::Integer(number) => Frame::Integer(*number),
        Reply::Bulk(bytes) => Frame::BulkString(bytes.clone()),
        Reply::Null => Frame::Null,
        Reply::Array(items) => Frame::Array(items.iter().map(in_resp2).collect()),
        Reply::Map(pairs) => {
            Frame::Array(pairs.iter().flat_map(|(key, value)| [in_resp2(key), in_resp2(value)]).collect())
        }
    }
}

fn in_resp3(reply: &Reply) -> resp3::types::OwnedFrame {
    use resp3::types::OwnedFrame as Frame;
    let attributes = None;
    match reply {
        Reply::Simple(text) => Frame::SimpleString { data: text.as_bytes().to_vec(), attributes },
        Reply::Error(text) => Frame::SimpleError { data: text.clone(), attributes },
        Reply::Integer(number) => Frame::Number { data: *number, attributes },
        Reply::Bulk(bytes) => Frame::BlobString { data: bytes.clone(), attributes },
        Reply::Null => Frame::Null,
        Reply::Array(items) => Frame::Array { data: items.iter().map(in_resp3).collect(), attributes },
        Reply::Map(pairs) => {
            let data = pairs.iter().map(|(key, value)| (in_resp3(key), in_resp3(value))).collect();
            Frame::Map { data, attributes }
        }
    }
}

proptest! {
    /// Another implementation reads every reply as what was meant, to its last byte.
    #[test]
    fn replies_are_read_by_another_implementation(reply in any_reply()) {
        let bytes = encoded(&reply, Protocol::Resp2);
        let read = resp2::decode::decode(&bytes).expect("RESP2");
        prop_assert_eq!(read, Some((in_resp2(&reply), bytes.len())));
        let bytes = encoded(&reply, Protocol::Resp3);
        let read = resp3::decode::complete::decode(&bytes).expect("RESP3");
        prop_assert_eq!(read, Some((in_resp3(&reply), bytes.len())));
    }
}
