//! `vmrun features`.

use std::io::Write;
use std::process::ExitCode;

use serde_json::json;
use vmrun_runtime::oci::features;

/// Prints what this version understands, as features.md of the OCI runtime-spec has
/// it.
pub fn features() -> ExitCode {
    let commit = option_env!("VMRUN_COMMIT").unwrap_or_default();
    let document = features::features(json!({
        "dev.vmrun.version": env!("CARGO_PKG_VERSION"),
        "dev.vmrun.commit": commit,
        "dev.vmrun.checkpoint.enabled": "false",
    }));
    // Whoever closed stdout does not want to know.
    let _ = std::io::stdout().write_all(format!("{document:#}\n").as_bytes());
    ExitCode::SUCCESS
}
