//! Where the kernel keeps what it counts of this process's control group: version 2, then version
//! 1. A system may have both, with the memory controller on either.

use std::path::{Path, PathBuf};

/// The places of a file of the memory controller, by its name in each version; the first that can
/// be read is ours.
pub(crate) fn memory_files(v2: &str, v1: &str) -> Vec<PathBuf> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    places(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"), v2, v1)
}

/// Where a file of ours may be, likeliest first.
fn places(cgroup: &str, mountinfo: &str, v2: &str, v1: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (is_v2, file) in [(true, v2), (false, v1)] {
        let Some(group) = group_of(cgroup, is_v2) else { continue };
        for (root, mount) in mounts(mountinfo, is_v2) {
            // In a container the mount may begin below the root that our path counts from, or our
            // path may be one of the outside; then the mount itself is the best guess.
            let inside = Path::new(group).strip_prefix(root).unwrap_or(Path::new(""));
            found.push(Path::new(mount).join(inside).join(file));
        }
    }
    found
}

/// Our path in the hierarchy of `/proc/self/cgroup` that accounts for memory.
fn group_of(cgroup: &str, is_v2: bool) -> Option<&str> {
    cgroup.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers) = (fields.next()?, fields.next()?);
        let is_it = match is_v2 {
            true => number == "0" && controllers.is_empty(),
            false => controllers.split(',').any(|controller| controller == "memory"),
        };
        fields.next().filter(|_| is_it)
    })
}

/// The mounts of that hierarchy in `/proc/self/mountinfo`: what part of it, and where.
fn mounts(mountinfo: &str, is_v2: bool) -> impl Iterator<Item = (&str, &str)> {
    mountinfo.lines().filter_map(move |line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut filesystem = filesystem.split(' ');
        let kind = filesystem.next()?;
        let mut options = filesystem.nth(1)?.split(',');
        let is_it = match is_v2 {
            true => kind == "cgroup2",
            false => kind == "cgroup" && options.any(|option| option == "memory"),
        };
        let mut fields = mount.split(' ').skip(3);
        let place = (fields.next()?, fields.next()?);
        is_it.then_some(place)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2_MOUNT: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
    const V1_MOUNTS: &str = "\
        34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn a_file_is_found_in_either_version() {
        let v1 = "4:memory:/process/ab\n3:cpuset:/\n0::/\n";
        let table = [
            // A service of systemd.
            (
                "0::/system.slice/forq.service\n",
                V2_MOUNT,
                &["/sys/fs/cgroup/system.slice/forq.service/memory.events"][..],
            ),
            // Both versions at once: whichever can be read.
            (
                v1,
                V1_MOUNTS,
                &[
                    "/sys/fs/cgroup/unified/memory.events",
                    "/sys/fs/cgroup/memory/process/ab/memory.oom_control",
                ],
            ),
            // Two controllers in one hierarchy.
            (
                "6:hugetlb,memory:/a:b\n",
                "35 31 0:32 / /cg rw shared:9 master:1 - cgroup cgroup rw,hugetlb,memory\n",
                &["/cg/a:b/memory.oom_control"],
            ),
            // A container that sees the outside's path, and its own part mounted.
            (
                "0::/docker/4f/inner\n",
                "30 23 0:26 /docker/4f /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
                &["/sys/fs/cgroup/inner/memory.events"],
            ),
            // A container whose path lies outside of what is mounted.
            (
                "0::/elsewhere\n",
                "30 23 0:26 /docker/4f /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
                &["/sys/fs/cgroup/memory.events"],
            ),
            ("", V2_MOUNT, &[]),
            ("0::/\n", "", &[]),
            ("garbage\n0:\n", "garbage - \n - cgroup2\n", &[]),
        ];
        for (cgroup, mountinfo, expected) in table {
            let expected: Vec<_> = expected.iter().map(PathBuf::from).collect();
            let found = places(cgroup, mountinfo, "memory.events", "memory.oom_control");
            assert_eq!(found, expected, "{cgroup}{mountinfo}");
        }
    }
}
