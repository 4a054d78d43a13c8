//! One connection's bytes into messages, as many as its share of a turn allows.

use crate::codec::{self, kind};
use crate::config::limits;
use crate::net::{Frame, Limits, ReadStatus};
use crate::resp;
use crate::runtime::conns::{Conn, Door, Item, PIPELINE, Received, Role, Share, name};

/// Why no more is taken from what has been read.
enum Taken {
    /// No whole message is left.
    All,
    /// There may be more for another turn.
    Enough,
    /// More is taken when there are fewer requests to be answered.
    Full,
}

/// Reads and decodes; true if there is more to be had without waiting for an event.
pub(super) fn read(
    conn: &mut Conn,
    token: usize,
    share: Share,
    received: &mut Vec<Item>,
) -> Result<bool, String> {
    if !conn.established {
        match conn.connection.finish_connect() {
            Ok(true) => {
                conn.established = true;
                if let Role::Dialled(server) = conn.role {
                    received.push(Item { token, role: conn.role, received: Received::Established(server) });
                }
            }
            Ok(false) => return Ok(false),
            Err(e) => return Err(e.to_string()),
        }
    }
    let mut left = share.requests;
    // What an earlier turn left comes first, so that no more is read than is needed.
    if !conn.connection.pending().is_empty() {
        match take(conn, token, &mut left, received)? {
            Taken::All => {}
            Taken::Enough => return Ok(true),
            Taken::Full => return Ok(false),
        }
    }
    let status = conn.connection.fill_up_to(share.bytes);
    match take(conn, token, &mut left, received)? {
        Taken::All => {}
        Taken::Enough => return Ok(true),
        Taken::Full => return Ok(false),
    }
    match status {
        Ok(ReadStatus::Drained) => Ok(false),
        Ok(ReadStatus::More) => Ok(true),
        Ok(ReadStatus::Eof) if conn.unanswered > 0 => {
            conn.ended = true;
            Ok(false)
        }
        Ok(ReadStatus::Eof) => match conn.connection.unfinished_bytes() {
            0 => Err("closed by the other end".into()),
            cut => {
                log::warn!("{} closed the connection in the middle of a frame ({cut} bytes)", conn.name());
                Err(format!("closed in the middle of a frame, after {cut} bytes"))
            }
        },
        Err(e) => Err(e.to_string()),
    }
}

/// Takes whole messages out of what was read, `left` at most.
fn take(conn: &mut Conn, token: usize, left: &mut usize, received: &mut Vec<Item>) -> Result<Taken, String> {
    if conn.role == Role::Stranger && conn.door != Door::Peers && speaks_resp(conn.connection.pending()) {
        conn.role = Role::Resp;
        conn.spare_the_slow();
        conn.connection.set_limits(Limits {
            frame_bytes: resp::codec::MAX_REQUEST_BYTES,
            send_bytes: limits::CLIENT_BUFFER_BYTES,
        });
        // From now on it has its turn with the other clients.
        return Ok(Taken::Enough);
    }
    if conn.role == Role::Resp {
        return Ok(take_requests(conn, token, left, received));
    }
    while *left > 0 {
        match conn.connection.next_frame() {
            Ok(Some(frame)) => {
                let decoded = decode(conn.role, frame).inspect_err(|e| {
                    log::warn!("closing the connection with {}: {e}", name(conn.role, conn.remote))
                })?;
                received.push(Item { token, role: conn.role, received: decoded });
                *left -= 1;
            }
            Ok(None) => return Ok(Taken::All),
            Err(e) => {
                log::warn!("closing the connection with {}: {e}", conn.name());
                return Err(e.to_string());
            }
        }
        // A stranger says one thing; what follows, the end of the stream included, is read again with the limits of who
        // it turns out to be.
        if conn.role == Role::Stranger {
            return Ok(Taken::Enough);
        }
    }
    Ok(Taken::Enough)
}

/// Whether the first bytes are no frame: those of a hello begin with a length far below 65,536, and text has no zeros.
fn speaks_resp(first: &[u8]) -> bool {
    matches!(first, [_, _, third, fourth, ..] if third | fourth != 0)
}

fn take_requests(conn: &mut Conn, token: usize, left: &mut usize, received: &mut Vec<Item>) -> Taken {
    while conn.unanswered < PIPELINE {
        if *left == 0 {
            return Taken::Enough;
        }
        let request = match resp::decode(conn.connection.pending()) {
            Ok(None) => return Taken::All,
            Ok(Some((args, bytes))) => {
                conn.connection.consume(bytes);
                if args.is_empty() {
                    continue;
                }
                Ok(args)
            }
            Err(e) => {
                log::warn!("closing the connection with {}: {e}", conn.name());
                // Whatever follows has no beginning.
                conn.ended = true;
                Err(e)
            }
        };
        conn.unanswered += 1;
        conn.spoke = true;
        *left -= 1;
        let role = conn.role;
        received.push(Item { token, role, received: Received::Resp(request) });
        if conn.ended {
            return Taken::Full;
        }
    }
    Taken::Full
}

fn decode(role: Role, frame: Frame<'_>) -> Result<Received, String> {
    match (role, frame.kind) {
        (Role::Stranger, kind::HELLO) => codec::decode(frame.payload).map(Received::Hello),
        (Role::Peer(_), kind::PEER) => codec::decode(frame.payload).map(Received::Peer),
        (Role::Client, kind::REQUEST) => codec::decode(frame.payload).map(Received::Request),
        (Role::Admin, kind::ADMIN) => codec::decode(frame.payload).map(Received::Order),
        (Role::Dialled(_), kind::RESPONSE) => codec::decode(frame.payload).map(Received::Response),
        (Role::Dialled(_), kind::REPORT) => codec::decode(frame.payload).map(Received::Report),
        (Role::Dialled(_), kind::REJECT) => codec::decode(frame.payload).map(Received::Reject),
        (_, kind) => Err(format!("a frame of kind {kind} has no place here")),
    }
}
