"""The kernel's log: lines of every form, what they weigh, floods, rotation, and logs of real machines."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ninthsky.guard.telemetry.kernel import KMSG, KernelLog, Line, Reader, open_log, parse
from ninthsky.guard.telemetry.note import Note

XID = "NVRM: Xid (PCI:0000:9b:00): {}, pid=2024380, name=python, something"
LOGS = Path(os.environ.get("NINTHSKY_DATA", Path(__file__).parents[4] / "shared" / "data")) / "guard" / "logs"


def reader(pids: dict[int, int] | None = None) -> Reader:
    return Reader({"0000:9b:00": 3}, lambda pid: (pids or {}).get(pid, -1))


def note(text: str, now: float = 100.0) -> Note | None:
    return reader().note(Line(text, -1.0), now)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "4,3964,206764307,-;NVRM: Xid (PCI:0000:9b:00): 79\n SUBSYSTEM=pci",
            Line("NVRM: Xid (PCI:0000:9b:00): 79", 206.764307),
        ),
        ("30,3964,206764307,-;systemd[1]: Failed with result 'oom-kill'.", None),
        ("<6>[  201.650687] sysrq: SysRq", Line("sysrq: SysRq", 201.650687)),
        ("[ 12.5] a\n", Line("a", 12.5)),
        ("Nov 24 10:00:00 node1 kernel: a", Line("Nov 24 10:00:00 node1 kernel: a", -1.0)),
    ],
)
def test_forms(text: str, line: Line | None) -> None:
    assert parse(text) == line


@pytest.mark.parametrize(
    ("text", "weight", "cause"),
    [
        (XID.format(79), "hard", "gpu_fell_off_bus"),
        (XID.format(48), "hard", "gpu_ecc"),
        (XID.format(95), "hard", "gpu_ecc"),
        (XID.format(63), "warning", "gpu_ecc"),
        (XID.format(94), "warning", "gpu_ecc"),
        (XID.format(74), "warning", "nvlink"),
        (XID.format(119), "warning", "driver"),
        (XID.format(13), "said", "user_code"),
        ("mlx5_core 0000:1a:00.0 ib0: Link down", "warning", "nic_link"),
        ("EXT4-fs error (device nvme0n1p2): ext4_find_entry:1455: inode #2: reading directory lblock 0", "warning", "disk_io"),
        ("nvme nvme0: I/O 12 QID 3 timeout, aborting", "warning", "disk_io"),
        ("nfs: server storage1 not responding, still trying", "warning", "filesystem_stall"),
        ("EDAC MC0: 1 UE memory read error on CPU_SrcID#0_MC#0_Chan#1_DIMM#0", "hard", "host_memory"),
        ("EDAC MC0: 1 CE memory read error on CPU_SrcID#0_MC#0_Chan#1_DIMM#0", "warning", "host_memory"),
        ("CPU3: Core temperature above threshold, cpu clock throttled", "warning", "thermal"),
        ("amdgpu 0000:9b:00.0: amdgpu: uncorrectable hardware errors detected in umc block", "hard", "gpu_ecc"),
    ],
)
def test_lines_that_tell(text: str, weight: str, cause: str) -> None:
    found = note(text)
    assert found is not None and (found.weight, found.cause) == (weight, cause)
    assert found.slot == (3 if "9b:00" in text else -1)


@pytest.mark.parametrize(
    "text",
    [
        "IPv6: ADDRCONF(NETDEV_CHANGE): eth0: link becomes ready",
        "veth12ab: Link is Down",
        "docker0: port 1(veth1) entered disabled state",
        "perf: interrupt took too long (2501 > 2500), lowering kernel.perf_event_max_sample_rate to 79750",
        'audit: type=1400 audit(1.2:3): apparmor="DENIED" operation="open"',
        "pcieport 0000:00:01.0: AER: Corrected error received: 0000:01:00.0",
        "e1000e: eth1 NIC Link is Up 1000 Mbps Full Duplex",
        "Linux version 6.1.0",
        "",
    ],
)
def test_lines_that_do_not(text: str) -> None:
    found = note(text)
    assert found is None or found.weight == "said", found


def test_alike_lines_are_counted_and_two_cards_are_two() -> None:
    mine = reader()
    assert mine.note(Line(XID.format(79), -1.0), 0.0) is not None
    assert all(mine.note(Line(XID.format(79), -1.0), float(second)) is None for second in range(1, 50))
    again = mine.note(Line(XID.format(79), -1.0), 61.0)
    assert again is not None and again.count == 50
    assert mine.note(Line(XID.format(48), -1.0), 62.0) is not None
    assert mine.note(Line(XID.format(79).replace("9b", "5e"), -1.0), 62.0) is not None


def test_a_victim_of_the_kernel_is_ours_or_is_not_told() -> None:
    text = "Out of memory: Killed process 4711 (python) total-vm:123kB, anon-rss:12kB"
    mine = Reader({}, {4711: 2}.get)  # type: ignore[arg-type]
    found = mine.note(Line(text, -1.0), 0.0)
    assert found is not None and (found.slot, found.cause, found.weight) == (2, "host_oom", "said")
    other = reader()
    other._all_pids = True
    assert other.note(Line(text, -1.0), 0.0) is None


def test_age_is_by_the_kernels_own_clock() -> None:
    now = time.monotonic()
    found = reader().note(Line(XID.format(79), now - 4.0), now)
    assert found is not None and found.age == pytest.approx(4.0) and found.uptime == pytest.approx(now - 4.0)


def test_a_file_is_followed_from_its_end_through_cuts_and_rotation(tmp_path: Path) -> None:
    path = tmp_path / "kern.log"
    path.write_text("old\n")
    log = KernelLog(path)
    assert log.read() == []
    with path.open("a") as file:
        file.write("one\ntw")
    assert [line.text for line in log.read()] == ["one"]
    with path.open("a") as file:
        file.write("o\n")
    assert [line.text for line in log.read()] == ["two"]
    path.write_text("3\n")  # cut short and written anew
    assert [line.text for line in log.read() + log.read()] == ["3"]
    path.rename(tmp_path / "kern.log.1")
    path.write_text("four\n")
    assert [line.text for line in log.read() + log.read()] == ["four"]
    path.unlink()
    assert log.read() == [], "being rotated: it will be there again"
    log.close()


def test_a_flood_is_read_in_bounded_parts(tmp_path: Path) -> None:
    path = tmp_path / "kern.log"
    path.touch()
    log = KernelLog(path)
    path.write_bytes(b"x" * 5_000_000 + b"\nend\n")
    parts = [log.read() for _ in range(25)]
    assert [line.text for part in parts for line in part][-1] == "end"
    assert max(len(line.text) for part in parts for line in part) <= 2 * 8192 + (1 << 18)
    log.close()


def test_what_cannot_be_opened_is_said_where_it_was_asked_for(tmp_path: Path) -> None:
    assert open_log("off") == (None, "")
    log, problem = open_log(str(tmp_path / "nothing"))
    assert log is None and "No such file" in problem


@pytest.mark.skipif(not os.access(KMSG, os.R_OK), reason="/dev/kmsg cannot be read here")
def test_the_device_itself() -> None:
    """From its end on: only what others make the kernel say meanwhile."""
    log = KernelLog(KMSG)
    later = log.read()
    os.lseek(log._file, 0, os.SEEK_SET)
    lines = log.read()
    assert len(later) < len(lines) and all(line.uptime >= 0 for line in lines)
    log.close()


@pytest.mark.skipif(not LOGS.is_dir(), reason="no guard/logs in NINTHSKY_DATA")
@pytest.mark.parametrize("name", ["gpud_pkg_kmsg_testdata_kmsg.1.log", "gpud_pkg_kmsg_testdata_kmsg.2.peermem.log"])
def test_real_quiet_logs(name: str) -> None:
    mine = reader()
    lines = [parse(text) for text in (LOGS / name).read_text("utf-8", "replace").splitlines()]
    notes = [found for line in lines if line is not None and (found := mine.note(line, 1e6)) is not None]
    assert all(found.weight == "said" for found in notes), notes


@pytest.mark.skipif(not LOGS.is_dir(), reason="no guard/logs in NINTHSKY_DATA")
def test_a_real_log_with_an_xid() -> None:
    mine = Reader({"0000:9b:00": 4}, lambda pid: -1)
    text = (LOGS / "gpud_components_accelerator_nvidia_xid_testdata_dmesg-with-xid-119.log").read_text("utf-8", "replace")
    notes = [
        found for line in text.splitlines() if (one := parse(line)) is not None and (found := mine.note(one, 1e6)) is not None
    ]
    assert (notes[0].cause, notes[0].slot, notes[0].weight) == ("driver", 4, "warning")
    assert len(notes) <= 8
