//! `--kernel`, `--initramfs` and `--cmdline`: what the guest boots.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Problem;
use super::schema::{CommandLine, HostPath};
use super::spelling::{Key, NotYet, Spelling, Value};
use super::validate::path_fault;

/// How its keys are spelled, each of which is an option of its own and takes the whole text.
pub const SPELLING: Spelling = Spelling {
    type_name: "PayloadConfig",
    about: "What the guest boots",
    bare: None,
    keys: &[
        Key::new(
            "kernel",
            "kernel",
            Value::Typed("<path>"),
            "Kernel: an ELF with a PVH entry or a bzImage on x86_64, an Image on aarch64",
        ),
        Key::new(
            "cmdline",
            "cmdline",
            Value::Typed("<text>"),
            "Command line of the kernel",
        ),
        Key::new(
            "initramfs",
            "initramfs",
            Value::Typed("<path>"),
            "Initial RAM file system",
        ),
    ],
    not_yet: &[
        NotYet::both("firmware"),
        NotYet::field("igvm"),
        NotYet::field("host_data"),
    ],
};

/// What the guest boots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PayloadConfig {
    /// The kernel image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = HostPath, required)]
    pub kernel: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<CommandLine>)]
    pub cmdline: Option<String>,
    /// The initial RAM file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<HostPath>)]
    pub initramfs: Option<PathBuf>,
}

impl PayloadConfig {
    /// Adds what is wrong with it to `problems`.
    pub(super) fn validate(&self, problems: &mut Vec<Problem>) {
        let Self {
            kernel,
            cmdline,
            initramfs,
        } = self;
        if kernel.is_none() {
            let reason = "nothing to boot; give a kernel: --kernel <path>";
            problems.push(Problem::invalid("--kernel", reason));
        }
        for (option, path) in [("--kernel", kernel), ("--initramfs", initramfs)] {
            if let Some(path) = path
                && let Some(reason) = path_fault(path)
            {
                let at = format!("{option} {}", path.display());
                problems.push(Problem::invalid(at, reason));
            }
        }
        if let Some(cmdline) = cmdline
            && cmdline.contains('\0')
        {
            let at = format!("--cmdline {cmdline:?}");
            problems.push(Problem::invalid(at, "must not contain a NUL character"));
        }
    }
}
