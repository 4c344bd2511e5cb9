//! The wire format after the handshake: frames, each with a message authentication code.
//!
//! | bytes | content |
//! |---|---|
//! | 1 | [`Kind`] |
//! | 4 | number: of the exchange, or of the rank that was lost |
//! | 8 | length of the payload |
//! | length | payload |
//! | 32 | HMAC-SHA256 of how many frames went before on this connection, the header and the payload |
//!
//! Integers are little-endian. Each direction of a connection has its own key, derived in the handshake. The length is
//! checked against its limit before anything is allocated, and the code before anything is used.

use std::io::{self, Read, Write};

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// The keyed hash of one direction.
pub(super) type Key = Hmac<Sha256>;

/// The kind of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A heartbeat.
    Beat = 0,
    /// Part of a collective operation; the number counts those.
    Message = 1,
    /// To rank 0: the sender was asked to stop.
    Stop = 2,
    /// The sender ends with an error, the payload.
    Failed = 3,
    /// From rank 0: the rank in the number is lost; the payload is the reason.
    Lost = 4,
    /// The sender has finished.
    Bye = 5,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Beat, Self::Message, Self::Stop, Self::Failed, Self::Lost, Self::Bye];

    /// Maximum bytes of a payload; `message` is the maximum of a message.
    fn limit(self, message: u64) -> u64 {
        match self {
            Self::Beat | Self::Stop | Self::Bye => 0,
            Self::Failed | Self::Lost => REASON as u64,
            Self::Message => message,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) number: u32,
    pub(super) payload: Vec<u8>,
}

const HEADER: usize = 13;
const TAG: usize = 32;
/// Maximum bytes of a reason.
const REASON: usize = 4096;
/// Maximum bytes to copy so that they are sent in one packet, and to allocate before they have arrived.
const PACKET: u64 = 1 << 16;

/// Writes frames.
pub(super) struct Writer<W> {
    to: W,
    key: Key,
    sent: u64,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(to: W, key: Key) -> Self {
        Self { to, key, sent: 0 }
    }

    pub(super) fn get_ref(&self) -> &W {
        &self.to
    }

    pub(super) fn write(&mut self, kind: Kind, number: u32, payload: &[u8]) -> io::Result<()> {
        let mut header = [0; HEADER];
        header[0] = kind as u8;
        header[1..5].copy_from_slice(&number.to_le_bytes());
        header[5..].copy_from_slice(&(payload.len() as u64).to_le_bytes());
        let tag = code(&self.key, self.sent, &header, payload).finalize().into_bytes();
        self.sent += 1;
        if payload.len() as u64 <= PACKET {
            return self.to.write_all(&[&header[..], payload, &tag].concat());
        }
        self.to.write_all(&header)?;
        self.to.write_all(payload)?;
        self.to.write_all(&tag)
    }

    /// A frame with a reason, truncated to the maximum.
    pub(super) fn write_reason(&mut self, kind: Kind, number: u32, reason: &str) -> io::Result<()> {
        let cut = (0..=reason.len().min(REASON)).rev().find(|&at| reason.is_char_boundary(at)).unwrap_or(0);
        self.write(kind, number, &reason.as_bytes()[..cut])
    }
}

/// Reads frames.
pub(super) struct Reader<R> {
    from: R,
    key: Key,
    read: u64,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(from: R, key: Key) -> Self {
        Self { from, key, read: 0 }
    }

    /// The next frame; `None` at the end of the stream. `limit` returns the maximum bytes of a message, and is called once
    /// the header is read.
    ///
    /// # Errors
    /// If the stream breaks, or the frame is unknown, too long or not from the other end of the handshake.
    pub(super) fn read(&mut self, limit: impl FnOnce() -> u64) -> io::Result<Option<Frame>> {
        let mut header = [0; HEADER];
        let first = loop {
            match self.from.read(&mut header[..1]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if first == 0 {
            return Ok(None);
        }
        let kind = Kind::ALL.into_iter().find(|&kind| kind as u8 == header[0]);
        let kind = kind.ok_or_else(|| invalid(format!("a frame of the unknown kind {}", header[0])))?;
        self.from.read_exact(&mut header[1..])?;
        let number = u32::from_le_bytes([header[1], header[2], header[3], header[4]]);
        let [_, _, _, _, _, len @ ..] = header;
        let (len, most) = (u64::from_le_bytes(len), kind.limit(limit()));
        if len > most {
            return Err(invalid(format!("a frame ({kind:?}) of {len} bytes, where at most {most} may come")));
        }
        let mut payload = Vec::with_capacity(len.min(PACKET) as usize);
        if self.from.by_ref().take(len).read_to_end(&mut payload)? as u64 != len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut tag = [0; TAG];
        self.from.read_exact(&mut tag)?;
        let code = code(&self.key, self.read, &header, &payload);
        code.verify_slice(&tag)
            .map_err(|_| invalid("a frame that was changed on the way, or is not from there".into()))?;
        self.read += 1;
        Ok(Some(Frame { kind, number, payload }))
    }
}

fn code(key: &Key, before: u64, header: &[u8], payload: &[u8]) -> Key {
    let mut code = key.clone();
    code.update(&before.to_le_bytes());
    code.update(header);
    code.update(payload);
    code
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use hmac::KeyInit;

    use super::*;

    const LIMIT: u64 = 1 << 20;

    fn key(bytes: &[u8]) -> Key {
        Key::new_from_slice(bytes).unwrap()
    }

    fn written(frames: &[(Kind, u32, &[u8])]) -> Vec<u8> {
        let mut line = Writer::new(Vec::new(), key(b"one"));
        frames.iter().for_each(|(kind, number, payload)| line.write(*kind, *number, payload).unwrap());
        line.to
    }

    fn first(line: &[u8]) -> io::Result<Option<Frame>> {
        Reader::new(line, key(b"one")).read(|| LIMIT)
    }

    #[test]
    fn frames_come_back() {
        let large = vec![7; LIMIT as usize];
        let sent =
            [(Kind::Beat, 0, &[][..]), (Kind::Message, 9, &large), (Kind::Lost, 3, b"gone"), (Kind::Bye, 0, b"")];
        let line = written(&sent);
        let mut reader = Reader::new(line.as_slice(), key(b"one"));
        for (kind, number, payload) in sent {
            let frame = reader.read(|| LIMIT).unwrap();
            assert_eq!(frame, Some(Frame { kind, number, payload: payload.to_vec() }));
        }
        assert_eq!(reader.read(|| LIMIT).unwrap(), None);
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        let mut line = Writer::new(Vec::new(), key(b"one"));
        line.write_reason(Kind::Failed, 0, &format!("a{}", "é".repeat(5000))).unwrap();
        let frame = first(&line.to).unwrap().unwrap();
        assert_eq!(frame.payload.len(), REASON - 1);
        assert!(String::from_utf8(frame.payload).is_ok());
    }

    #[test]
    fn bytes_that_are_no_frame_are_errors() {
        let error = |line: &[u8]| first(line).unwrap_err();
        assert_eq!(error(b"GET / HTTP/1.1\r\n").kind(), io::ErrorKind::InvalidData);
        let line = written(&[(Kind::Failed, 1, b"why")]);
        for end in 1..line.len() {
            assert_eq!(error(&line[..end]).kind(), io::ErrorKind::UnexpectedEof, "cut at {end}");
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_an_error_before_anything_is_read() {
        let header = |kind: Kind, len: u64| [&[kind as u8, 0, 0, 0, 0][..], &len.to_le_bytes()].concat();
        for (kind, most) in [(Kind::Message, LIMIT), (Kind::Failed, 4096), (Kind::Lost, 4096), (Kind::Beat, 0)] {
            for len in [most + 1, u64::MAX] {
                // Otherwise reading on would report an unexpected end.
                let error = first(&header(kind, len)).unwrap_err();
                assert!(error.to_string().contains(&format!("at most {most}")), "{kind:?} {len}: {error}");
            }
            assert_eq!(first(&header(kind, most)).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn changed_repeated_and_missing_frames_are_errors() {
        let line = written(&[(Kind::Message, 1, b"abc"), (Kind::Message, 2, b"def")]);
        let len = line.len() / 2;
        let refused = |line: &[u8]| {
            let mut reader = Reader::new(line, key(b"one"));
            (0..2).find_map(|_| reader.read(|| LIMIT).err()).is_some_and(|error| error.to_string().contains("changed"))
        };
        assert!(!refused(&line));
        // Flips a bit of the number, the payload or the code.
        for at in (1..5).chain(HEADER..len) {
            let mut changed = line.clone();
            changed[at] ^= 1;
            assert!(refused(&changed), "byte {at}");
        }
        assert!(refused(&[&line[..len], &line[..len]].concat()), "repeated");
        assert!(refused(&line[len..]), "left out");
        let other = Reader::new(line.as_slice(), key(b"two")).read(|| LIMIT).unwrap_err();
        assert!(other.to_string().contains("changed"), "another key: {other}");
    }
}
