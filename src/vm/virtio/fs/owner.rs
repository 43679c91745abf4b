//! Whose files they are.

use libc::stat64;

use fuse_backend_rs::api::filesystem::Context;
use rustix::process::{getegid, geteuid};
use rustix::thread::{CapabilitySet, capabilities};

/// How user and group ids of the guest and of the host relate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// Root on the host: ids are the same on both sides, and what the guest
    /// creates belongs to the id that created it.
    Same,
    /// A plain user: everything is created by and belongs to that user, who
    /// appears as root in the guest. Other ids are seen as they are.
    User {
        /// User id on the host.
        uid: u32,
        /// Group id on the host.
        gid: u32,
    },
}

impl Owner {
    /// As the process may. `fuse-backend-rs` sets effective ids around creations
    /// and sets them back to 0, so only a process that is 0 may let it.
    pub fn of_process() -> Self {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        let needed = CapabilitySet::SETUID | CapabilitySet::SETGID;
        let may = capabilities(None).is_ok_and(|sets| sets.effective.contains(needed));
        if uid == 0 && gid == 0 && may {
            Self::Same
        } else {
            Self::User { uid, gid }
        }
    }

    /// On whose behalf the host acts; 0 means as the process itself.
    pub fn caller(self, context: &Context) -> Context {
        match self {
            Self::Same => *context,
            Self::User { .. } => Context {
                uid: 0,
                gid: 0,
                ..*context
            },
        }
    }

    /// Attributes as the guest sees them.
    pub fn to_guest(self, attr: &mut stat64) {
        if let Self::User { uid, gid } = self {
            swap_with_root(&mut attr.st_uid, uid);
            swap_with_root(&mut attr.st_gid, gid);
        }
    }

    /// Ids that the guest wants to give a file.
    pub fn to_host(self, attr: &mut stat64) {
        // Exchanging two ids is its own inverse.
        self.to_guest(attr);
    }
}

fn swap_with_root(id: &mut u32, user: u32) {
    if *id == user {
        *id = 0;
    } else if *id == 0 {
        *id = user;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_user_is_root_in_the_guest() {
        let owner = Owner::User {
            uid: 1000,
            gid: 100,
        };
        // SAFETY: all zeroes is a valid stat64.
        #[allow(unsafe_code)]
        let mut attr: stat64 = unsafe { std::mem::zeroed() };
        (attr.st_uid, attr.st_gid) = (1000, 33);
        owner.to_guest(&mut attr);
        assert_eq!((attr.st_uid, attr.st_gid), (0, 33));
        owner.to_host(&mut attr);
        assert_eq!((attr.st_uid, attr.st_gid), (1000, 33));

        let context = Context {
            uid: 33,
            gid: 33,
            pid: 7,
        };
        let caller = owner.caller(&context);
        assert_eq!((caller.uid, caller.gid, caller.pid), (0, 0, 7));
        let caller = Owner::Same.caller(&context);
        assert_eq!((caller.uid, caller.gid), (33, 33));
    }
}
