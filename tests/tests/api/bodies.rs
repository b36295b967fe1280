//! Bodies as other programs write them.

use serde_json::{Value, json};

use crate::{machine, server, wait_for};

/// What a program writes that fills in every field of the interface with its default: `null` for what
/// is absent, and defaults of what is not there yet.
fn every_field(kernel: &Value, console: &Value) -> Value {
    json!({
        "cpus": {
            "boot_vcpus": 1, "max_vcpus": 1, "topology": null, "kvm_hyperv": false,
            "max_phys_bits": 46, "affinity": null, "features": {"amx": false}, "nested": true,
            "core_scheduling": "Vm",
        },
        "memory": {
            "size": 67_108_864, "mergeable": false, "hotplug_method": "Acpi", "hotplug_size": null,
            "hotplugged_size": null, "shared": false, "hugepages": false, "hugepage_size": null,
            "prefault": false, "reserve": false, "thp": true, "zones": null,
        },
        "payload": {
            "firmware": null, "kernel": kernel, "cmdline": "listen", "initramfs": null, "igvm": null,
            "host_data": null,
        },
        "rate_limit_groups": null, "disks": null, "net": [], "balloon": null, "fs": null,
        "generic_vhost_user": null, "pmem": null, "rng": {"src": "/dev/urandom", "iommu": false},
        "serial": {"file": console, "mode": "File", "socket": null},
        "console": {
            "file": null, "mode": "Off", "iommu": false, "socket": null, "id": null,
            "pci_segment": null, "pci_device_id": null,
        },
        "debug_console": {"file": null, "mode": "Off", "iobase": 233},
        "devices": [], "user_devices": null, "vdpa": null, "vsock": null, "pvpanic": false,
        "iommu": false, "numa": null, "watchdog": false, "pci_segments": null,
        "platform": {
            "num_pci_segments": 1, "iommu_segments": null, "iommu_address_width_bits": null,
            "serial_number": null, "uuid": null, "oem_strings": null, "tdx": false,
            "sev_snp": false, "iommufd": false, "vfio_p2p_dma": true,
        },
        "tpm": null, "landlock_enable": false, "landlock_rules": null,
    })
}

#[test]
fn bodies_with_every_field_boot() {
    let mut server = server(&[]);
    let small = machine(&server, "listen");
    let body = every_field(&small["payload"]["kernel"], &small["serial"]["file"]);
    server.put("vm.create", &body).expect(204);
    server.act("vm.boot").expect(204);
    wait_for(&mut server, "listen: ready", 1);
}

/// A program that reads the configuration of one virtual machine may create the next one with it.
#[test]
fn what_info_says_can_be_created_again() {
    for serial in ["File", "Pty"] {
        let mut server = server(&[]);
        let mut body = machine(&server, "listen");
        if serial == "Pty" {
            body["serial"] = json!({"mode": "Pty"});
        }
        body["memory"]["shared"] = json!(true);
        body["numa"] = json!([
            {"guest_numa_id": 0, "cpus": [0], "distances": [{"destination": 1, "distance": 40}]},
            {"guest_numa_id": 1},
        ]);
        server.put("vm.create", &body).expect(204);
        server.act("vm.boot").expect(204);
        let info = server.info();
        server.act("vm.delete").expect(204);
        server.put("vm.create", &info["config"]).expect(204);
        server.act("vm.boot").expect(204);
        let again = server.info();
        assert_eq!(info["device_tree"], again["device_tree"]);
        assert_eq!(info["numa"], again["numa"]);
        assert!(server.status().is_none());
    }
}
