use super::*;

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn atomic_write_replaces() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    for content in ["one", "two, longer", ""] {
        atomic_write(&path, |w| w.write_all(content.as_bytes())).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
    assert_eq!(names(dir.path()), ["a"]);
}

#[test]
fn atomic_write_that_fails_leaves_the_old_file_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    fs::write(&path, "old").unwrap();
    let error = atomic_write(&path, |w| {
        w.write_all(&[7; 3 << 20])?;
        Err(io::ErrorKind::StorageFull.into())
    })
    .unwrap_err()
    .to_string();
    assert!(error.contains(path.to_str().unwrap()) && error.contains("free some space"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    assert_eq!(names(dir.path()), ["a"]);
}

#[test]
fn atomic_write_where_it_cannot() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("no/such");
    assert!(atomic_write(&missing, |_| Ok(())).unwrap_err().to_string().contains("no/such"));
    assert!(names(dir.path()).is_empty());
}

#[cfg(unix)]
#[test]
fn atomic_write_gives_the_permissions_of_a_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    atomic_write(&dir.path().join("a"), |_| Ok(())).unwrap();
    File::create(dir.path().join("b")).unwrap();
    let mode = |name| fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
    assert_eq!(mode("a"), mode("b"));
}

#[test]
fn remove_abandoned_spares_the_living() {
    let dir = tempfile::tempdir().unwrap();
    for (name, hours) in [(".elapid-old.tmp", 2), (".elapid-new.tmp", 0), ("other.tmp", 2)] {
        let file = File::create(dir.path().join(name)).unwrap();
        let at = std::time::SystemTime::now() - std::time::Duration::from_secs(3600 * hours);
        file.set_modified(at).unwrap();
    }
    remove_abandoned(dir.path());
    assert_eq!(names(dir.path()), [".elapid-new.tmp", "other.tmp"]);
    // With exclusive access to the directory, no age is needed. Files being written are spared at any age.
    atomic_write(&dir.path().join("a"), |_| {
        remove_temporaries(dir.path(), Duration::ZERO);
        Ok(())
    })
    .unwrap();
    assert_eq!(names(dir.path()), ["a", "other.tmp"]);
}

/// Writes to a path, and returns the contents of `read` afterwards.
fn written(path: &Path, read: &Path, content: &str) -> String {
    atomic_write(path, |w| w.write_all(content.as_bytes())).unwrap();
    fs::read_to_string(read).unwrap()
}

#[cfg(unix)]
#[test]
fn atomic_write_follows_links() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("sub")).unwrap();
    fs::write(at("sub/file"), "old").unwrap();
    symlink("sub/file", at("link")).unwrap();
    symlink(at("link"), at("sub/link-to-link")).unwrap();
    symlink("sub/new", at("dangling")).unwrap();
    for (link, target) in [("link", "sub/file"), ("sub/link-to-link", "sub/file"), ("dangling", "sub/new")] {
        assert_eq!(written(&at(link), &at(target), link), link);
        assert!(fs::symlink_metadata(at(link)).unwrap().is_symlink(), "{link}");
        assert!(fs::symlink_metadata(at(target)).unwrap().is_file(), "{target}");
    }
    symlink("circle", at("circle")).unwrap();
    let error = atomic_write(&at("circle"), |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("circle") && error.contains("symbolic links"), "{error}");
    assert_eq!(names(dir.path()), ["circle", "dangling", "link", "sub"]);
    assert_eq!(names(&at("sub")), ["file", "link-to-link", "new"]);
}

#[cfg(unix)]
#[test]
fn atomic_write_keeps_the_permissions_of_the_old_file() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    for mode in [0o600, 0o640, 0o444, 0o755, 0o666] {
        fs::write(dir.path().join("b"), "old").unwrap();
        fs::set_permissions(dir.path().join("b"), fs::Permissions::from_mode(mode)).unwrap();
        fs::rename(dir.path().join("b"), &path).unwrap();
        assert_eq!(written(&path, &path, "new"), "new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode);
    }
}

#[cfg(unix)]
#[test]
fn atomic_write_goes_through_a_pipe() {
    use std::os::unix::fs::{FileTypeExt, symlink};
    let dir = tempfile::tempdir().unwrap();
    let pipe = super::super::testing::pipe(dir.path(), "pipe");
    symlink("pipe", dir.path().join("link")).unwrap();
    for name in ["pipe", "link"] {
        let from = pipe.clone();
        let reader = std::thread::spawn(move || fs::read(from).unwrap());
        atomic_write(&dir.path().join(name), |w| w.write_all(&[7; 3 << 20])).unwrap();
        assert_eq!(reader.join().unwrap(), [7; 3 << 20]);
        assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    }
    assert_eq!(names(dir.path()), ["link", "pipe"]);
}

#[cfg(target_os = "linux")]
#[test]
fn atomic_write_leaves_a_device() {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    use std::os::unix::fs::FileTypeExt;
    let dir = tempfile::tempdir().unwrap();
    let (null, full) = (dir.path().join("null"), dir.path().join("full"));
    for (path, minor) in [(&null, 3), (&full, 7)] {
        if let Err(error) = mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, minor))
        {
            eprintln!("skipped: a device cannot be made here ({error})");
            return;
        }
    }
    if let Err(error) = File::open(&null) {
        eprintln!("skipped: devices cannot be opened in {} ({error})", dir.path().display());
        return;
    }
    atomic_write(&null, |w| w.write_all(&[7; 3 << 20])).unwrap();
    let error = atomic_write(&full, |w| w.write_all(b"x")).unwrap_err().to_string();
    assert!(error.contains("free some space"), "{error}");
    for path in [null, full] {
        assert!(fs::symlink_metadata(path).unwrap().file_type().is_char_device());
    }
    assert_eq!(names(dir.path()), ["full", "null"]);
}

#[test]
fn atomic_write_on_a_directory_says_so() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    let mut called = false;
    let error = atomic_write(&dir.path().join("d"), |_| {
        called = true;
        Ok(())
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("cannot write") && error.contains("it is a directory"), "{error}");
    assert!(!called, "nothing is computed for a file that cannot be");
    assert_eq!(names(dir.path()), ["d"]);
}
