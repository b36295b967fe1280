//! Code at the reset vector, for guests that restart by jumping there.
//!
//! Linux does so on hardware-reduced ACPI: there it prefers UEFI's reset to the FADT's reset
//! register, and without UEFI falls back to the BIOS entry point F000:FFF0, in real mode. So there
//! is what a BIOS would come to in the end: a write to the reset register.

/// Bytes from the reset vector to the end of the first mebibyte.
pub const SIZE: usize = 16;

/// Code that writes `value` to `port`, and waits should nothing come of it.
pub fn code(port: u16, value: u8) -> [u8; SIZE] {
    let [low, high] = port.to_le_bytes();
    let mut code = [0; SIZE];
    for (slot, byte) in code.iter_mut().zip([
        // mov dx, port
        0xba, low, high, //
        // mov al, value
        0xb0, value, //
        // out dx, al
        0xee, //
        // hlt, and again
        0xf4, 0xeb, 0xfd,
    ]) {
        *slot = byte;
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `as --code16` assembles `mov $0x602,%dx; mov $1,%al; out %al,%dx; 1: hlt; jmp 1b`.
    #[test]
    fn writes_the_reset_register() {
        let expected = [0xba, 0x02, 0x06, 0xb0, 0x01, 0xee, 0xf4, 0xeb, 0xfd];
        let code = code(0x602, 1);
        assert_eq!(code[..9], expected);
        assert_eq!(code[9..], [0; 7]);
    }
}
