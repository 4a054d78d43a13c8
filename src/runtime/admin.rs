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

/// Gives one order to one server and waits for its report.
pub fn ask(context: &Context, server: NodeId, order: &Order) -> Result<Report, AskError> {
    use AskError::{Refused, Unreachable};
    let address = context
        .address(server, &Opener::Admin)
        .ok_or_else(|| Refused(format!("{server} has no address in the configuration")))?;
    let name = |e: io::Error| Unreachable(format!("{server} at {address} does not answer: {e}"));
    let connect = |found| TcpStream::connect_timeout(&found, CONNECT_PATIENCE);
    let mut stream = address.first(connect).map_err(name)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(name)?;
    stream.set_nodelay(true).map_err(name)?;
    let hello = context.hello(server, Opener::Admin);
    let mut frames = Vec::new();
    encode(kind::HELLO, &mut frames, |out| codec::encode(&hello, out));
    encode(kind::ADMIN, &mut frames, |out| codec::encode(order, out));
    stream.write_all(&frames).map_err(name)?;

    let asked = Instant::now();
    let mut reader = FrameReader::new();
    let limit = limits::PEER_FRAME_BYTES;
    loop {
        let garbled = |e: String| Refused(format!("{server} at {address} answers with garbage: {e}"));
        let frame = reader.next_frame(limit).map_err(|e| garbled(e.to_string()))?;
        match frame.map(|f| (f.kind, f.payload)) {
            Some((kind::REPORT, payload)) => return codec::decode(payload).map_err(garbled),
            Some((kind::REJECT, payload)) => {
                return Err(Refused(codec::decode::<String>(payload).map_err(garbled)?));
            }
            Some((kind, _)) => return Err(garbled(format!("a frame of kind {kind}"))),
            None => {}
        }
        if asked.elapsed() > PATIENCE {
            return Err(Unreachable(format!("{server} at {address} does not answer")));
        }
        let count = stream.read(reader.space(limit)).map_err(name)?;
        if count == 0 {
            return Err(Unreachable(format!("{server} at {address} closed the connection")));
        }
        reader.filled(count);
    }
}
