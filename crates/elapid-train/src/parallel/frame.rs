//! What ranks say to each other: a kind, a number, some bytes.

use std::io::{self, Read, Write};

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The sender lives.
    Beat = 0,
    /// Part of something that all ranks do together; the number counts those.
    Message = 1,
    /// To rank 0: the sender was asked to stop.
    Stop = 2,
    /// The sender ends with an error, the bytes.
    Failed = 3,
    /// From rank 0: the rank of the number is lost, the bytes say why.
    Lost = 4,
    /// The sender ends because all is done.
    Bye = 5,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) number: u32,
    pub(super) bytes: Vec<u8>,
}

const HEADER: usize = 13;
/// Memory that is taken on the word of a header alone.
const TRUSTED: u64 = 1 << 20;

pub(super) fn write(to: &mut impl Write, kind: Kind, number: u32, bytes: &[u8]) -> io::Result<()> {
    let mut header = [0; HEADER];
    header[0] = kind as u8;
    header[1..5].copy_from_slice(&number.to_le_bytes());
    header[5..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    if bytes.len() as u64 <= TRUSTED {
        // In one packet.
        return to.write_all(&[&header[..], bytes].concat());
    }
    to.write_all(&header)?;
    to.write_all(bytes)
}

/// The next frame; none at the end.
pub(super) fn read(from: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut header = [0; HEADER];
    let first = loop {
        match from.read(&mut header[..1]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if first == 0 {
        return Ok(None);
    }
    from.read_exact(&mut header[1..])?;
    let kinds = [Kind::Beat, Kind::Message, Kind::Stop, Kind::Failed, Kind::Lost, Kind::Bye];
    let kind = kinds.into_iter().find(|&kind| kind as u8 == header[0]);
    let kind = kind.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a frame of no known kind"))?;
    let number = u32::from_le_bytes([header[1], header[2], header[3], header[4]]);
    let [_, _, _, _, _, len @ ..] = header;
    let len = u64::from_le_bytes(len);
    let mut bytes = Vec::with_capacity(len.min(TRUSTED) as usize);
    if from.take(len).read_to_end(&mut bytes)? as u64 != len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(Frame { kind, number, bytes }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back() {
        let mut line = Vec::new();
        let large = vec![7; (TRUSTED + 5) as usize];
        let sent =
            [(Kind::Beat, 0, &[][..]), (Kind::Message, 9, &large), (Kind::Lost, 3, b"gone"), (Kind::Bye, 0, b"")];
        sent.iter().for_each(|(kind, number, bytes)| write(&mut line, *kind, *number, bytes).unwrap());
        let mut rest = line.as_slice();
        for (kind, number, bytes) in sent {
            assert_eq!(read(&mut rest).unwrap(), Some(Frame { kind, number, bytes: bytes.to_vec() }));
        }
        assert_eq!(read(&mut rest).unwrap(), None);
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        assert!(read(&mut &b"GET / HTTP/1.1\r\n"[..]).is_err());
        let mut line = Vec::new();
        write(&mut line, Kind::Failed, 1, b"why").unwrap();
        assert!(read(&mut &line[..line.len() - 1]).is_err(), "cut short");
        // A length that nobody means takes no memory.
        let huge = [&[1, 0, 0, 0, 0][..], &u64::MAX.to_le_bytes()].concat();
        assert!(read(&mut &huge[..]).is_err());
    }
}
