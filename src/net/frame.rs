//! Frames: how messages are told apart, and checked, in a stream of bytes.
//!
//! ```text
//! length   u32 LE   bytes of kind and payload together, at least 1
//! checksum u32 LE   CRC-32C of length, kind and payload
//! kind     u8       given its meaning by codec
//! payload  length - 1 bytes
//! ```
//!
//! The length stands first and is compared with the limit before a byte is allocated for the frame; the receive buffer
//! then grows with the bytes that really arrive, so a peer that announces much and sends nothing costs nothing. The
//! checksum covers the length too: a frame cut at the wrong place does not pass as a shorter one.
//!
//! After an error the place where the next frame begins is unknown. The reader therefore stays at the bad frame and
//! repeats the error; the connection is to be closed.

use std::error::Error;
use std::fmt;

use super::Slack;

/// Length and checksum, which stand before the kind.
pub const HEADER_BYTES: usize = 8;

/// What a receive buffer begins with, and how far it may grow beyond one whole frame of the largest size.
pub const READ_BYTES: usize = 64 * 1024;

/// A frame that arrived whole and passed its checksum; it points into the receive buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    pub kind: u8,
    pub payload: &'a [u8],
}

/// Why a stream of bytes cannot be read any further.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameError {
    /// The announced length is beyond what this peer may send. Both are in bytes, of kind and payload together.
    TooLarge { len: usize, limit: usize },
    /// The bytes are not those that were sent, or the sender speaks another protocol.
    Checksum,
    /// A length of zero leaves no room for the kind.
    Empty,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::TooLarge { len, limit } => {
                write!(f, "frame of {len} bytes, where at most {limit} are accepted")
            }
            FrameError::Checksum => f.write_str("frame with a wrong checksum"),
            FrameError::Empty => f.write_str("frame of length zero"),
        }
    }
}

impl Error for FrameError {}

/// Appends one frame to `out`; `write` appends the payload in place, so that nothing is copied on the way.
///
/// Panics if the payload does not fit the length field: limits far below that are the caller's to keep.
pub fn encode(kind: u8, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    out.push(kind);
    write(out);
    let body = start + HEADER_BYTES;
    let length = u32::try_from(out.len() - body).expect("a frame fits its 32-bit length").to_le_bytes();
    let checksum = checksum(length, &out[body..]).to_le_bytes();
    out[start..start + 4].copy_from_slice(&length);
    out[start + 4..body].copy_from_slice(&checksum);
}

fn checksum(length: [u8; 4], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length), body)
}

/// A receive buffer that hands out whole frames.
///
/// Fill it through [`space`](Self::space) and [`filled`](Self::filled), then take frames until there is none.
#[derive(Debug, Default)]
pub struct FrameReader {
    /// Zeroed once when it grows, never per read; what lies at `start..end` has arrived and was not taken yet.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    slack: Slack,
}

impl FrameReader {
    pub fn new() -> FrameReader {
        FrameReader::default()
    }

    /// Room for the next read. The whole buffer never exceeds `limit` by more than a header and [`READ_BYTES`]; when
    /// it is that full the room is empty, and a frame or an error is waiting to be taken.
    pub fn space(&mut self, limit: usize) -> &mut [u8] {
        if self.end == self.bytes.len() {
            if self.start > 0 {
                self.move_to_front();
            } else {
                let most = HEADER_BYTES + limit + READ_BYTES;
                let wanted = (2 * self.bytes.len()).clamp(READ_BYTES, most);
                if wanted > self.bytes.len() {
                    self.bytes.resize(wanted, 0);
                }
            }
        }
        &mut self.bytes[self.end..]
    }

    /// Says that the first `count` bytes of the room given last now hold what arrived.
    pub fn filled(&mut self, count: usize) {
        assert!(count <= self.bytes.len() - self.end, "more bytes were read than there was room for");
        self.end += count;
    }

    /// The next whole frame whose kind and payload take at most `limit` bytes, or `None` until more has arrived.
    pub fn next_frame(&mut self, limit: usize) -> Result<Option<Frame<'_>>, FrameError> {
        let arrived = &self.bytes[self.start..self.end];
        let Some(len) = whole_frame(arrived, limit)? else {
            self.settle();
            return Ok(None);
        };
        let body = self.start + HEADER_BYTES;
        self.start = body + len;
        Ok(Some(Frame { kind: self.bytes[body], payload: &self.bytes[body + 1..self.start] }))
    }

    /// What arrived and was not taken yet, for who reads something else than frames.
    pub fn pending(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Takes the first `count` bytes of that; all there is at most.
    pub fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
        if self.start == self.end {
            self.settle();
        }
    }

    /// Bytes that arrived and are not taken yet. At the end of a stream: how much of a cut frame there was.
    pub fn pending_bytes(&self) -> usize {
        self.end - self.start
    }

    /// Memory held by the buffer.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Keeps no more memory than what arrived and was not taken needs.
    pub fn release(&mut self) {
        self.move_to_front();
        self.bytes.truncate(self.end);
        self.bytes.shrink_to_fit();
    }

    /// All whole frames are taken: brings what is left to the front, and gives memory back that is not needed.
    fn settle(&mut self) {
        let left = self.pending_bytes();
        if self.slack.is_excessive(self.end, left, self.bytes.len()) {
            let mut smaller = vec![0; left.max(Slack::KEEP_BYTES)];
            smaller[..left].copy_from_slice(&self.bytes[self.start..self.end]);
            self.bytes = smaller;
            self.start = 0;
            self.end = left;
        } else {
            self.move_to_front();
        }
    }

    fn move_to_front(&mut self) {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }
}

/// The length of the frame at the front, once all of it is there and found intact.
fn whole_frame(arrived: &[u8], limit: usize) -> Result<Option<usize>, FrameError> {
    let Some((&length, rest)) = arrived.split_first_chunk::<4>() else { return Ok(None) };
    let len = u32::from_le_bytes(length) as usize;
    if len == 0 {
        return Err(FrameError::Empty);
    }
    if len > limit {
        return Err(FrameError::TooLarge { len, limit });
    }
    let Some((&sum, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
    let Some(body) = rest.get(..len) else { return Ok(None) };
    if checksum(length, body) != u32::from_le_bytes(sum) {
        return Err(FrameError::Checksum);
    }
    Ok(Some(len))
}
