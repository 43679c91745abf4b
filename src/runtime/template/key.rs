//! What a template is made of, and the name that follows from it.
//!
//! The kernel's parameters are not among it: they follow from vmrun's build and
//! the kind of host; a start that adds others uses no template.

use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::fmt::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::digests::{Digest, Digests};
use crate::guest_image::GuestImage;
use crate::machine::HostKind;
use crate::plan::Shape;

/// This process's own program, whatever is at its path by now.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// Everything that goes into a template. Starts whose inputs are equal but for the
/// paths share one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// Guest RAM.
    pub mem_size_mib: u32,
    /// Number of vCPUs.
    pub vcpu_count: u8,
    /// Whether ring 0 runs on the processor.
    pub hardware: bool,
    /// Of the processor's features, see [`cpu_digest`].
    pub cpu: Digest,
    /// Format of the machine's state.
    pub format: u32,
    /// vmrun itself: another build may make another machine.
    pub vmrun: InputFile,
    /// Guest kernel.
    pub kernel: InputFile,
    /// Initramfs with the agent.
    pub initramfs: InputFile,
}

/// A file that goes into a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// Where it was.
    pub path: PathBuf,
    /// What it held.
    pub digest: Digest,
}

impl Inputs {
    /// What a machine of `shape` from `image` on this host is made of.
    pub fn gather(
        shape: Shape,
        image: &GuestImage,
        host: HostKind,
        digests: &mut Digests,
    ) -> std::io::Result<Self> {
        let mut file = |path: &Path| {
            digests.of(path).map(|digest| InputFile {
                path: path.to_owned(),
                digest,
            })
        };
        Ok(Self {
            mem_size_mib: shape.mem_size_mib,
            vcpu_count: shape.vcpu_count,
            hardware: host == HostKind::Hardware,
            cpu: cpu_digest(),
            format: vmrun_vm::snapshot::FORMAT_VERSION,
            vmrun: file(Path::new(OWN_PROGRAM))?,
            kernel: file(&image.kernel)?,
            initramfs: file(&image.initramfs)?,
        })
    }

    /// With paths that other processes, in other folders, know the files by.
    pub fn with_whole_paths(mut self) -> std::io::Result<Self> {
        self.vmrun.path = std::env::current_exe()?;
        for file in [&mut self.kernel, &mut self.initramfs] {
            file.path = std::path::absolute(&file.path)?;
        }
        Ok(self)
    }

    /// The name of templates with these inputs.
    pub fn key(&self) -> Key {
        let mut text = String::from("vmrun template\n");
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "memory {} MiB\nvcpus {}\nhardware {}\ncpu {}\nformat {}\n",
            self.mem_size_mib, self.vcpu_count, self.hardware, self.cpu, self.format
        );
        for file in self.files() {
            let _ = writeln!(text, "file {}", file.digest);
        }
        let digest: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        let mut half = [0; Key::BYTES];
        half.copy_from_slice(&digest[..Key::BYTES]);
        Key(half)
    }

    /// The files, vmrun's program first.
    pub fn files(&self) -> [&InputFile; 3] {
        [&self.vmrun, &self.kernel, &self.initramfs]
    }

    /// The machine's size in words: `128 MiB, 1 vCPU`.
    pub fn shape(&self) -> String {
        let s = if self.vcpu_count == 1 { "" } else { "s" };
        format!("{} MiB, {} vCPU{s}", self.mem_size_mib, self.vcpu_count)
    }
}

/// Name of all templates with the same inputs: half of a SHA-256 digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key([u8; Self::BYTES]);

impl Key {
    /// Bytes in a key; it is written as twice as many hex digits.
    pub const BYTES: usize = 16;
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Digest of what decides which instructions and state components the processor
/// has (Intel SDM vol. 2A, CPUID): the guest has seen it when it is frozen.
pub fn cpu_digest() -> Digest {
    // In leaf 1 EBX bits 31-24 are the id of the processor that happens to run
    // this, and ECX bit 27 tells what the operating system did.
    const OWN_ID: u32 = 0xff00_0000;
    const OSXSAVE: u32 = 1 << 27;
    let mut hasher = Sha256::new();
    let mut add = |registers: [u32; 4]| registers.map(|r| hasher.update(r.to_le_bytes()));
    let highest = __cpuid(0).eax;
    for (leaf, subleaf) in [(0, 0), (1, 0), (7, 0), (7, 1), (0xd, 1)] {
        if leaf <= highest {
            let mut found = __cpuid_count(leaf, subleaf);
            if leaf == 1 {
                found.ebx &= !OWN_ID;
                found.ecx &= !OSXSAVE;
            }
            // EBX of leaf 0xD is the size of what is switched on right now.
            if leaf == 0xd {
                found.ebx = 0;
            }
            add([found.eax, found.ebx, found.ecx, found.edx]);
        }
    }
    let extended = __cpuid(0x8000_0000).eax;
    for leaf in [0x8000_0001, 0x8000_0008] {
        if leaf <= extended {
            let found = __cpuid(leaf);
            add([found.eax, found.ebx, found.ecx, found.edx]);
        }
    }
    Digest::from_bytes(hasher.finalize().into())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn inputs() -> Inputs {
        let file = |path: &str, byte| InputFile {
            path: path.into(),
            digest: Digest::from_bytes([byte; 32]),
        };
        Inputs {
            mem_size_mib: 128,
            vcpu_count: 1,
            hardware: false,
            cpu: Digest::from_bytes([4; 32]),
            format: 1,
            vmrun: file("/bin/vmrun", 1),
            kernel: file("/lib/vmlinux", 2),
            initramfs: file("/lib/initramfs.cpio", 3),
        }
    }

    #[test]
    fn every_input_counts_and_no_path_does() {
        let base = inputs();
        let other = Digest::from_bytes([9; 32]);
        let changes: [fn(&mut Inputs, Digest); 8] = [
            |i, _| i.mem_size_mib = 256,
            |i, _| i.vcpu_count = 2,
            |i, _| i.hardware = true,
            |i, d| i.cpu = d,
            |i, _| i.format = 2,
            |i, d| i.vmrun.digest = d,
            |i, d| i.kernel.digest = d,
            |i, d| i.initramfs.digest = d,
        ];
        let mut keys = vec![base.key().to_string()];
        for change in changes {
            let mut changed = base.clone();
            change(&mut changed, other);
            keys.push(changed.key().to_string());
        }
        let count = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), count);

        let mut moved = base.clone();
        moved.kernel.path = "/elsewhere".into();
        assert_eq!(moved.key(), base.key());
    }

    #[test]
    fn swapped_files_are_another_template() {
        let base = inputs();
        let mut swapped = base.clone();
        std::mem::swap(&mut swapped.kernel, &mut swapped.initramfs);
        assert_ne!(swapped.key(), base.key());
    }

    #[test]
    fn the_processor_stays_the_same() {
        let first = cpu_digest();
        let threads: Vec<_> = (0..8).map(|_| std::thread::spawn(cpu_digest)).collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), first);
        }
    }

    #[test]
    fn shapes_in_words() {
        assert_eq!(inputs().shape(), "128 MiB, 1 vCPU");
        let mut two = inputs();
        two.vcpu_count = 2;
        assert_eq!(two.shape(), "128 MiB, 2 vCPUs");
    }
}
