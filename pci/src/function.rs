//! What a segment asks of the functions on its bus.

/// A function's configuration space.
///
/// Called from any vCPU thread, from several at once. Offsets and widths come from the guest:
/// nothing panics, and a read leaves nothing of `data` unwritten.
pub trait Function: Send + Sync {
    /// Reads `data.len()` bytes, little-endian, at `offset` bytes into the 4096 of the function.
    fn read_config(&self, offset: u16, data: &mut [u8]);

    /// Writes `data`, little-endian.
    fn write_config(&self, offset: u16, data: &[u8]);
}
