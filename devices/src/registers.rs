//! How accesses of any width map to blocks of 32-bit registers.

/// Reads `data` at `offset` from registers of 32 bits at multiples of four.
///
/// One access reads one register, once: reading may have side effects. A narrow access gets its
/// bytes of the register, what a wide one asks for beyond the register is zero.
pub(crate) fn read_u32(offset: u64, data: &mut [u8], read: impl FnOnce(u64) -> u32) {
    if data.is_empty() {
        return;
    }
    data.fill(0);
    let skip = (offset & 3) as usize;
    let bytes = read(offset & !3).to_le_bytes();
    for (to, from) in data.iter_mut().zip(bytes.iter().skip(skip)) {
        *to = *from;
    }
}

/// The register and the value that a write of `data` at `offset` means.
///
/// `None` if the write does not begin at a register. A narrow value is extended with zeros, as
/// these buses do; of a wide one the first 32 bits count.
pub(crate) fn written_u32(offset: u64, data: &[u8]) -> Option<(u64, u32)> {
    if data.is_empty() || offset & 3 != 0 {
        return None;
    }
    let mut bytes = [0; 4];
    for (to, from) in bytes.iter_mut().zip(data) {
        *to = *from;
    }
    Some((offset, u32::from_le_bytes(bytes)))
}
