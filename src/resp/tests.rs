//! What clients may send, byte by byte and word by word, and the exact bytes that they get.

mod codec;
mod command;

use super::Reply;

/// The words of a line, as arguments.
fn words(line: &str) -> Vec<Vec<u8>> {
    line.split_whitespace().map(|word| word.as_bytes().to_vec()).collect()
}

fn error(text: &str) -> Reply {
    Reply::Error(text.into())
}
