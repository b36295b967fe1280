//! Names of the CPUs.

/// Affinity fields of the MPIDR_EL1 that KVM gives the vCPU with this index: Aff2..Aff0 in bits
/// 23:0, as a device tree and the MADT name the CPU (RES1 bit 31 is left out).
///
/// KVM derives the register from the index and lets nobody choose: 16 CPUs in each group of
/// affinity level 0, because a software-generated interrupt addresses at most 16 at once
/// (Arm IHI 0069, ICC_SGI1R_EL1.TargetList), then 256 in each of levels 1 and 2.
pub const fn mpidr(index: u32) -> u64 {
    let index = index as u64;
    (index & 0xf) | ((index >> 4) & 0xff) << 8 | ((index >> 12) & 0xff) << 16
}

#[cfg(test)]
mod tests {
    use super::mpidr;

    #[test]
    fn affinity_follows_the_index_in_groups_of_sixteen() {
        assert_eq!(mpidr(0), 0);
        assert_eq!(mpidr(1), 1);
        assert_eq!(mpidr(15), 0xf);
        assert_eq!(mpidr(16), 0x100);
        assert_eq!(mpidr(254), 0xf0e);
        assert_eq!(mpidr(255), 0xf0f);
        assert_eq!(mpidr(4095), 0xff0f);
        assert_eq!(mpidr(4096), 0x1_0000);
    }
}
