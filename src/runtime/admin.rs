//! Orders over the wire, for servers that run as processes: one blocking connection per server.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::codec::{self, Opener, kind};
use crate::config::limits;
use crate::net::{FrameReader, encode};
use crate::runtime::conns::Context;
use crate::runtime::order::{Order, Report};
use crate::types::NodeId;

/// How long a server may take to answer; `AwaitApplied` waits for a whole catch-up.
const PATIENCE: Duration = Duration::from_secs(60);
/// The status lies ready. Who asks for it wants to know now whether the server is there.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);

/// Why an order was not carried out, or not known to be.
#[derive(Debug)]
pub enum AskError {
    /// Nobody is there, or the connection broke: the server may be down.
    Unreachable(String),
    /// The server is there and will not have it.
    Refused(String),
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (AskError::Unreachable(what) | AskError::Refused(what)) = self;
        f.write_str(what)
    }
}

impl From<AskError> for String {
    fn from(error: AskError) -> String {
        error.to_string()
    }
}

/// What a server says to whoever it has no room for, if this is that.
fn turned_away(said: &[u8]) -> Option<String> {
    let line = said.strip_prefix(b"-ERR ")?.split(|byte| *byte == b'\r').next()?;
    Some(String::from_utf8_lossy(line).into())
}

/// Gives one order to one server and waits for its report.
pub fn ask(context: &Context, server: NodeId, order: &Order) -> Result<Report, AskError> {
    ask_within(patience(order), context, server, order)
}

fn patience(order: &Order) -> Duration {
    if matches!(order, Order::Status) { STATUS_PATIENCE } else { PATIENCE }
}

fn ask_within(
    patience: Duration,
    context: &Context,
    server: NodeId,
    order: &Order,
) -> Result<Report, AskError> {
    use AskError::{Refused, Unreachable};
    let address = context
        .address(server, &Opener::Admin)
        .ok_or_else(|| Refused(format!("{server} has no address in the configuration")))?;
    let asked = Instant::now();
    let silent = || Unreachable(format!("{server} at {address}: no answer within {} s", patience.as_secs()));
    let name = |e: io::Error| match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut if asked.elapsed() >= patience => silent(),
        _ => Unreachable(format!("{server} at {address} does not answer: {e}")),
    };
    let connect = |found| TcpStream::connect_timeout(&found, CONNECT_PATIENCE);
    let mut stream = address.first(connect).map_err(name)?;
    stream.set_nodelay(true).map_err(name)?;
    let hello = context.hello(server, Opener::Admin);
    let mut frames = Vec::new();
    encode(kind::HELLO, &mut frames, |out| codec::encode(&hello, out));
    encode(kind::ADMIN, &mut frames, |out| codec::encode(order, out));
    stream.write_all(&frames).map_err(name)?;

    let mut reader = FrameReader::new();
    let limit = limits::PEER_FRAME_BYTES;
    loop {
        let garbled = |e: String| Refused(format!("{server} at {address} answers with garbage: {e}"));
        if let Some(why) = turned_away(reader.pending()) {
            return Err(Unreachable(format!("{server} at {address} turns this connection away: {why}")));
        }
        let frame = reader.next_frame(limit).map_err(|e| garbled(e.to_string()))?;
        match frame.map(|f| (f.kind, f.payload)) {
            Some((kind::REPORT, payload)) => return codec::decode(payload).map_err(garbled),
            Some((kind::REJECT, payload)) => {
                return Err(Refused(codec::decode::<String>(payload).map_err(garbled)?));
            }
            Some((kind, _)) => return Err(garbled(format!("a frame of kind {kind}"))),
            None => {}
        }
        let left = patience.saturating_sub(asked.elapsed());
        if left.is_zero() {
            return Err(silent());
        }
        stream.set_read_timeout(Some(left)).map_err(name)?;
        let count = stream.read(reader.space(limit)).map_err(name)?;
        if count == 0 {
            return Err(Unreachable(format!("{server} at {address} closed the connection")));
        }
        reader.filled(count);
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::config::{Timeouts, Topology};
    use crate::net::Address;

    /// The status of a server whose process was stopped came after a minute, as a failure of the connection.
    #[test]
    fn a_server_that_is_silent_is_named_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = Address::from(listener.local_addr().expect("an address"));
        let addresses = [(NodeId(1), address.into())].into();
        let (topology, timeouts) = (Topology::default(), Timeouts::default());
        let context = Context { cluster_id: 1, topology, timeouts, addresses };
        assert_eq!(patience(&Order::Status), Duration::from_secs(5));
        let within = Duration::from_secs(1);
        let error = ask_within(within, &context, NodeId(1), &Order::Status).expect_err("nobody accepts");
        assert!(matches!(error, AskError::Unreachable(_)), "{error}");
        assert!(error.to_string().ends_with("no answer within 1 s"), "{error}");
    }
}
