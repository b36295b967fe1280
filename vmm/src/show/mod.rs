//! `--plan`: what a guest would see, without a guest.

mod devices;
mod numa;
mod text;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use thiserror::Error;

use crate::config::cli::PlanOptions;
use crate::config::{ConfigErrors, VmConfig};
use crate::machine::{HOST_ISA, Host, host_memory};
use crate::passthrough::{self, PassthroughError};
use crate::plan::{FirmwarePlan, HostFacts, Plan, PlanError, PlannedTable};

pub use self::numa::describe as describe_numa;

/// Why a plan cannot be shown.
#[derive(Debug, Error)]
pub enum ShowError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The configuration does not fit the host.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A device cannot be looked at.
    #[error(transparent)]
    Passthrough(#[from] PassthroughError),
    /// The recorded facts cannot be read.
    #[error("--plan-facts {}: cannot read it", path.display())]
    ReadFacts {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The recorded facts make no sense.
    #[error("--plan-facts {}: expected what --plan-format json prints", path.display())]
    ParseFacts {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// A table cannot be written.
    #[error("--plan={}: cannot write it", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The plan cannot be put into JSON.
    #[error("--plan-format json")]
    Json(#[source] serde_json::Error),
}

/// The JSON form of what is shown.
#[derive(Serialize)]
struct Shown<'a> {
    facts: &'a HostFacts,
    plan: &'a Plan,
    warnings: Vec<String>,
}

/// Makes the plan and writes its tables to the folder, if one is given.
///
/// # Returns
/// The text to print.
///
/// # Errors
/// Any [`ShowError`].
pub fn show(config: &VmConfig, options: &PlanOptions) -> Result<String, ShowError> {
    let PlanOptions {
        folder,
        json,
        facts,
    } = options;
    let recorded = facts.as_deref().map(recorded).transpose()?;
    let is_here = recorded.is_none();
    let mut facts = recorded.unwrap_or_else(own_facts);
    config.validate_on(facts.isa, &facts.memory)?;
    if is_here {
        facts.devices = passthrough::look(config)?;
    }
    let plan = Plan::new(config, &facts)?;
    if let Some(folder) = folder {
        write_tables(folder, &plan)?;
    }
    if !json {
        return Ok(text::describe(&plan, &facts));
    }
    let shown = Shown {
        facts: &facts,
        warnings: plan.warnings(),
        plan: &plan,
    };
    let text = serde_json::to_string_pretty(&shown).map_err(ShowError::Json)?;
    Ok(format!("{text}\n"))
}

/// What this host offers, or what most do where there is no KVM.
fn own_facts() -> HostFacts {
    match Host::open() {
        Ok(host) => host.facts,
        Err(error) => {
            log::warn!("--plan: {error}; the limits of a usual host are assumed");
            HostFacts::assumed(HOST_ISA, host_memory())
        }
    }
}

/// Reads the facts from what `--plan-format json` printed, or from its `facts` alone.
fn recorded(path: &Path) -> Result<HostFacts, ShowError> {
    let text = fs::read(path).map_err(|source| ShowError::ReadFacts {
        path: path.to_owned(),
        source,
    })?;
    let parse = || {
        let mut value: serde_json::Value = serde_json::from_slice(&text)?;
        let facts = value.get_mut("facts").map(serde_json::Value::take);
        serde_json::from_value(facts.unwrap_or(value))
    };
    parse().map_err(|source| ShowError::ParseFacts {
        path: path.to_owned(),
        source,
    })
}

/// Writes each ACPI table to a file that iasl reads: `srat.dat` and so on.
fn write_tables(folder: &Path, plan: &Plan) -> Result<(), ShowError> {
    let failed = |path: &Path, source| ShowError::Write {
        path: path.to_owned(),
        source,
    };
    fs::create_dir_all(folder).map_err(|source| failed(folder, source))?;
    for PlannedTable { name, bytes, .. } in tables(plan) {
        let path = folder.join(format!("{}.dat", name.to_lowercase()));
        fs::write(&path, bytes).map_err(|source| failed(&path, source))?;
    }
    Ok(())
}

fn tables(plan: &Plan) -> &[PlannedTable] {
    match &plan.firmware {
        FirmwarePlan::Acpi { tables, .. } => tables,
        FirmwarePlan::DeviceTree => &[],
    }
}

#[cfg(test)]
mod tests;
