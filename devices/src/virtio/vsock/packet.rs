//! Headers of packets (section 5.10.6).

/// Bytes of a header.
pub const HEADER: usize = 44;

/// The host's context (section 5.10.4).
pub const HOST_CID: u64 = 2;

/// Connections of bytes, without boundaries between messages (section 5.10.6.1).
pub const STREAM: u16 = 1;

/// What packets say (section 5.10.6).
pub mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// What whoever shuts down will not do any more (section 5.10.6.5).
pub mod shutdown {
    pub const RECEIVE: u32 = 1;
    pub const SEND: u32 = 2;
    pub const BOTH: u32 = RECEIVE | SEND;
}

/// A header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    /// Bytes of data behind it.
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    /// Bytes that the sender keeps for what it is sent.
    pub buf_alloc: u32,
    /// Bytes that have left the sender's buffer, of all times, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// What these bytes say.
    pub fn from_bytes(bytes: &[u8; HEADER]) -> Self {
        let mut rest = &bytes[..];
        Self {
            src_cid: u64::from_le_bytes(next(&mut rest)),
            dst_cid: u64::from_le_bytes(next(&mut rest)),
            src_port: u32::from_le_bytes(next(&mut rest)),
            dst_port: u32::from_le_bytes(next(&mut rest)),
            len: u32::from_le_bytes(next(&mut rest)),
            kind: u16::from_le_bytes(next(&mut rest)),
            op: u16::from_le_bytes(next(&mut rest)),
            flags: u32::from_le_bytes(next(&mut rest)),
            buf_alloc: u32::from_le_bytes(next(&mut rest)),
            fwd_cnt: u32::from_le_bytes(next(&mut rest)),
        }
    }

    /// Its bytes.
    pub fn to_bytes(self) -> [u8; HEADER] {
        let Self {
            src_cid,
            dst_cid,
            src_port,
            dst_port,
            len,
            kind,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        } = self;
        let mut bytes = [0; HEADER];
        let fields = src_cid
            .to_le_bytes()
            .into_iter()
            .chain(dst_cid.to_le_bytes())
            .chain(src_port.to_le_bytes())
            .chain(dst_port.to_le_bytes())
            .chain(len.to_le_bytes())
            .chain(kind.to_le_bytes())
            .chain(op.to_le_bytes())
            .chain(flags.to_le_bytes())
            .chain(buf_alloc.to_le_bytes())
            .chain(fwd_cnt.to_le_bytes());
        for (to, from) in bytes.iter_mut().zip(fields) {
            *to = from;
        }
        bytes
    }
}

/// The next bytes; zeroes where there are none.
fn next<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let Some((bytes, later)) = rest.split_first_chunk() else {
        return [0; N];
    };
    *rest = later;
    *bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Field by field, from the specification's structure.
    #[test]
    fn fields_are_where_the_specification_has_them() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: 2,
            src_port: 0x1111_2222,
            dst_port: 0x3333_4444,
            len: 0x5555_6666,
            kind: 1,
            op: 5,
            flags: 3,
            buf_alloc: 0x4_0000,
            fwd_cnt: 0xffff_fff0,
        };
        let expected = [
            &[8, 7, 6, 5, 4, 3, 2, 1][..],
            &[2, 0, 0, 0, 0, 0, 0, 0],
            &[0x22, 0x22, 0x11, 0x11],
            &[0x44, 0x44, 0x33, 0x33],
            &[0x66, 0x66, 0x55, 0x55],
            &[1, 0, 5, 0],
            &[3, 0, 0, 0],
            &[0, 0, 4, 0],
            &[0xf0, 0xff, 0xff, 0xff],
        ]
        .concat();
        assert_eq!(header.to_bytes()[..], expected);
        assert_eq!(Header::from_bytes(&header.to_bytes()), header);
    }
}
