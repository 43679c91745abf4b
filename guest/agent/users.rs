//! Users by name, from the container's own /etc/passwd and /etc/group. The
//! files are the image's: read once, with a cap, and parsed without trust.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, OFlags};
use rustix::io::{Errno, read, retry_on_intr};
use vmrun_protocol::message::{Failure, FailureKind};
use vmrun_protocol::plan::User;

use crate::failure::{Named, failure, quoted, setup};
use crate::inside::{Root, Symlinks, file_type};
use crate::mounts::is_missing;

/// Longest passwd or group file that is read, in bytes.
const FILE_MAX_BYTES: usize = 1 << 20;
/// `NGROUPS_MAX` of linux/limits.h.
const GROUPS_MAX: usize = 65536;
/// (uid_t) -1 is "no change" to the kernel, never a user.
const NO_ID: u32 = u32::MAX;

/// The numbers a process runs with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ids {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// The ids of `user`, looked up inside the container where it is a name.
pub fn find(root: &Root, user: &User) -> Result<Ids, Failure> {
    let ids = match &user.name {
        Some(name) => by_name(root, name)?,
        None => Ids {
            uid: user.uid,
            gid: user.gid,
            groups: user.additional_gids.clone(),
        },
    };
    if ids.uid == NO_ID || ids.gid == NO_ID || ids.groups.contains(&NO_ID) {
        return Err(setup("user or group id 4294967295", Errno::INVAL));
    }
    Ok(ids)
}

fn by_name(root: &Root, name: &[u8]) -> Result<Ids, Failure> {
    let passwd = read_file(root, b"/etc/passwd")?;
    let unknown = || failure(FailureKind::Setup, format!("user {}", quoted(name)), 0);
    let (uid, gid) = find_user(&passwd, name).ok_or_else(unknown)?;
    let group = read_file(root, b"/etc/group")?;
    let groups = find_groups(&group, name);
    Ok(Ids { uid, gid, groups })
}

/// The home folder of user `uid` in the container's /etc/passwd, `/` where it
/// has none.
pub fn home(root: &Root, uid: u32) -> Result<Vec<u8>, Failure> {
    let passwd = read_file(root, b"/etc/passwd")?;
    Ok(find_home(&passwd, uid).unwrap_or(b"/").to_vec())
}

/// All of a regular file; a missing one is empty.
fn read_file(root: &Root, path: &[u8]) -> Result<Vec<u8>, Failure> {
    let what = || quoted(path);
    // Non-blocking: opening a fifo must not wait.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let file = match root.open(path, flags, Symlinks::Inside) {
        Err(errno) if is_missing(errno) => return Ok(Vec::new()),
        opened => opened.named(what)?,
    };
    if file_type(file.as_fd()).named(what)? != FileType::RegularFile {
        return Err(setup(what(), Errno::INVAL));
    }
    read_capped(&file).named(what)
}

fn read_capped(file: &OwnedFd) -> rustix::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let len = retry_on_intr(|| read(file, &mut chunk))?;
        if content.len() + len > FILE_MAX_BYTES {
            return Err(Errno::FBIG);
        }
        content.extend_from_slice(chunk.get(..len).unwrap_or_default());
        if len < chunk.len() {
            return Ok(content);
        }
    }
}

/// Uid and gid of `name` in the text of a passwd(5) file; the first entry that
/// is whole counts.
fn find_user(passwd: &[u8], name: &[u8]) -> Option<(u32, u32)> {
    entries(passwd, name).find_map(|mut fields| {
        let uid = number(fields.nth(1)?)?;
        let gid = number(fields.next()?)?;
        Some((uid, gid))
    })
}

/// Home folder of the first user with number `uid` in the text of a passwd(5) file.
fn find_home(passwd: &[u8], uid: u32) -> Option<&[u8]> {
    let line = passwd.split(|b| *b == b'\n').find(|line| {
        let uid_field = line.split(|b| *b == b':').nth(2);
        uid_field.and_then(number) == Some(uid)
    })?;
    let home = line.split(|b| *b == b':').nth(5)?;
    (home.first() == Some(&b'/') && !home.contains(&0)).then_some(home)
}

/// Groups in the text of a group(5) file that list `user` as a member.
fn find_groups(group: &[u8], user: &[u8]) -> Vec<u32> {
    let mut groups: Vec<u32> = Vec::new();
    for line in group.split(|b| *b == b'\n') {
        let mut fields = line.split(|b| *b == b':');
        let gid = fields.nth(2).and_then(number);
        let members = fields.next().unwrap_or_default();
        let member = members.split(|b| *b == b',').any(|m| m == user);
        if let Some(gid) = gid
            && member
            && groups.len() < GROUPS_MAX
        {
            groups.push(gid);
        }
    }
    groups
}

/// The fields behind the name of each line that starts with `name`.
fn entries<'t>(
    text: &'t [u8],
    name: &'t [u8],
) -> impl Iterator<Item = impl Iterator<Item = &'t [u8]>> {
    text.split(|b| *b == b'\n').filter_map(move |line| {
        let mut fields = line.split(|b| *b == b':');
        (fields.next() == Some(name) && !name.is_empty()).then_some(fields)
    })
}

/// A decimal number without sign or blanks.
fn number(text: &[u8]) -> Option<u32> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inside::own_folder;
    use proptest::prelude::*;

    const PASSWD: &[u8] = b"# comment\nroot:x:0:0:root:/root:/bin/sh\n\
        bad:x:twelve:1::/:\nneg:x:-1:1::/:\nbad:x:7:8::/:\nwww:x:33:34::/:\nshort:x:5";

    #[test]
    fn users_are_found_by_their_whole_name() {
        assert_eq!(find_user(PASSWD, b"root"), Some((0, 0)));
        assert_eq!(find_user(PASSWD, b"www"), Some((33, 34)));
        assert_eq!(find_user(PASSWD, b"ww"), None);
        assert_eq!(find_user(PASSWD, b""), None);
        assert_eq!(find_user(PASSWD, b"root:x"), None);
    }

    #[test]
    fn a_broken_entry_never_becomes_root() {
        assert_eq!(find_user(PASSWD, b"bad"), Some((7, 8)));
        assert_eq!(find_user(PASSWD, b"neg"), None);
        assert_eq!(find_user(PASSWD, b"short"), None);
        assert_eq!(find_user(b"u:x:4294967296:1", b"u"), None);
        assert_eq!(find_user(b"u:x: 1:1", b"u"), None);
    }

    #[test]
    fn homes_are_found_by_number() {
        assert_eq!(find_home(PASSWD, 0), Some(&b"/root"[..]));
        assert_eq!(find_home(PASSWD, 33), Some(&b"/"[..]));
        assert_eq!(find_home(PASSWD, 5), None);
        assert_eq!(find_home(b"u:x:1:1::relative:", 1), None);
    }

    #[test]
    fn groups_list_members() {
        let group = b"root:x:0:\naudio:x:29:bob,www\nvideo:x:44:www\nx:x::www\ny:x:9:wwww\n";
        assert_eq!(find_groups(group, b"www"), [29, 44]);
        assert_eq!(find_groups(group, b""), [0]);
    }

    #[test]
    fn unknown_users_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(own_folder(dir.path().to_str().unwrap()).unwrap());
        let user = User {
            name: Some(b"ghost".to_vec()),
            ..User::default()
        };
        let failure = find(&root, &user).unwrap_err();
        assert_eq!(
            (failure.what.as_str(), failure.errno),
            ("user \"ghost\"", 0)
        );
        let nobody = User {
            uid: NO_ID,
            ..User::default()
        };
        assert!(find(&root, &nobody).is_err());
    }

    #[test]
    fn a_fifo_or_a_huge_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let path = dir.path().join("etc/passwd");
        let root = Root::new(own_folder(dir.path().to_str().unwrap()).unwrap());
        std::fs::write(&path, vec![b'\n'; FILE_MAX_BYTES + 1]).unwrap();
        let errno = read_file(&root, b"/etc/passwd").unwrap_err().errno;
        assert_eq!(errno, Errno::FBIG.raw_os_error());
        std::fs::remove_file(&path).unwrap();
        let mode = rustix::fs::Mode::RWXU;
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
        assert!(read_file(&root, b"/etc/passwd").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = find_user(&text, b"a");
            let _ = find_groups(&text, b"a");
            let _ = find_home(&text, 1);
        }
    }
}
