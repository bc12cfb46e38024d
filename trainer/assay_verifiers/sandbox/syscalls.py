"""The system calls that a locked-down program may make, with their numbers.

An allow-list: what is not named here is refused, so that a call which nobody thought of is no way
out. The numbers are the kernel's interface and never change (`asm/unistd_64.h` for x86-64,
`asm-generic/unistd.h` for AArch64). An entry is NAME:X86-64:AARCH64, with - where the architecture
lacks the call. The calls in the second table depend on their arguments, see `seccomp`.
"""

from __future__ import annotations

_ALLOWED = """
# memory
brk:12:214 mmap:9:222 mprotect:10:226 munmap:11:215 mremap:25:216 msync:26:227 mincore:27:232
madvise:28:233 mlock:149:228 munlock:150:229 mlock2:325:284 pkey_alloc:330:289
pkey_free:331:290 pkey_mprotect:329:288 membarrier:324:283 get_mempolicy:239:236
# files that are open
read:0:63 write:1:64 pread64:17:67 pwrite64:18:68 readv:19:65 writev:20:66 preadv:295:69
pwritev:296:70 preadv2:327:286 pwritev2:328:287 lseek:8:62 close:3:57 close_range:436:436
dup:32:23 dup2:33:- dup3:292:24 fstat:5:80 ftruncate:77:46 fallocate:285:47 fsync:74:82
fdatasync:75:83 sync_file_range:277:84 fadvise64:221:223 readahead:187:213 flock:73:32
sendfile:40:71 splice:275:76 tee:276:77 vmsplice:278:75 copy_file_range:326:285 getdents:78:-
getdents64:217:61 pipe:22:- pipe2:293:59
# files by name (Landlock says which)
open:2:- openat:257:56 openat2:437:437 creat:85:- stat:4:- lstat:6:- newfstatat:262:79
statx:332:291 access:21:- faccessat:269:48 faccessat2:439:439 readlink:89:- readlinkat:267:78
truncate:76:45 mkdir:83:- mkdirat:258:34 rmdir:84:- unlink:87:- unlinkat:263:35 rename:82:-
renameat:264:38 renameat2:316:276 link:86:- linkat:265:37 symlink:88:- symlinkat:266:36
getcwd:79:17 chdir:80:49 fchdir:81:50 umask:95:166 statfs:137:43 fstatfs:138:44 getxattr:191:8
lgetxattr:192:9 fgetxattr:193:10 listxattr:194:11 llistxattr:195:12 flistxattr:196:13
# waiting
poll:7:- ppoll:271:73 select:23:- pselect6:270:72 epoll_create:213:- epoll_create1:291:20
epoll_ctl:233:21 epoll_wait:232:- epoll_pwait:281:22 epoll_pwait2:441:441 eventfd:284:-
eventfd2:290:19 timerfd_create:283:85 timerfd_settime:286:86 timerfd_gettime:287:87
signalfd:282:- signalfd4:289:74 pause:34:- futex:202:98 futex_waitv:449:449
set_robust_list:273:99 nanosleep:35:101 clock_nanosleep:230:115 restart_syscall:219:128
sched_yield:24:124
# time
time:201:- gettimeofday:96:169 clock_gettime:228:113 clock_getres:229:114 alarm:37:-
getitimer:36:102 setitimer:38:103 times:100:153
# socket pairs
recvfrom:45:207 sendto:44:206 recvmsg:47:212 sendmsg:46:211 recvmmsg:299:243 sendmmsg:307:269
shutdown:48:210 getsockname:51:204 getpeername:52:205 getsockopt:55:209 setsockopt:54:208
# signals to itself
rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigpending:127:136 rt_sigtimedwait:128:137
rt_sigsuspend:130:133 rt_sigreturn:15:139 sigaltstack:131:132
# itself
execve:59:221 exit:60:93 exit_group:231:94 wait4:61:260 waitid:247:95 getpid:39:172
getppid:110:173 gettid:186:178 getpgrp:111:- getpgid:121:155 getsid:124:156 setpgid:109:154
setsid:112:157 getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177 getresuid:118:148
getresgid:120:150 getgroups:115:158 capget:125:90 getrlimit:97:163 getrusage:98:165
getpriority:140:141 sched_getaffinity:204:123 sched_getparam:143:121 sched_getscheduler:145:120
sched_get_priority_max:146:125 sched_get_priority_min:147:126 sched_rr_get_interval:148:127
set_tid_address:218:96 arch_prctl:158:- rseq:334:293 getcpu:309:168 getrandom:318:278
uname:63:160 sysinfo:99:179
# since Linux 6.7: the same number everywhere
map_shadow_stack:453:453 futex_wake:454:454 futex_wait:455:455 futex_requeue:456:456
"""

_CHECKED = """
clone:56:220 clone3:435:435 fork:57:- vfork:58:- kill:62:129 tgkill:234:131 prctl:157:167
ioctl:16:29 fcntl:72:25 socketpair:53:199 prlimit64:302:261
"""

# Modes and times of files by their owner: Landlock does not know them.
_OWNERS = """
chmod:90:- fchmod:91:52 fchmodat:268:53 fchmodat2:452:452
utime:132:- utimes:235:- futimesat:261:- utimensat:280:88
"""

LAST_KNOWN = 462
"""Above this number stand calls that are newer than this table: they do not exist here (ENOSYS), so
that a C library falls back on older ones. Refusals below it are EPERM."""

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""By machine: the column in the tables and the kernel's AUDIT_ARCH number."""


def _column(table: str, column: int) -> dict[str, int]:
    numbers = {}
    for line in table.splitlines():
        if not line.startswith("#"):
            for entry in line.split():
                name, *columns = entry.split(":")
                if columns[column] != "-":
                    numbers[name] = int(columns[column])
    return numbers


def allowed(machine: str) -> list[int]:
    """The numbers of the calls that are let through whatever their arguments, ascending."""
    return sorted(_column(_ALLOWED, ARCHITECTURES[machine][0]).values())


def of_owners(machine: str) -> list[int]:
    """The numbers of the calls that change modes and times of files."""
    return sorted(_column(_OWNERS, ARCHITECTURES[machine][0]).values())


def checked(machine: str) -> dict[str, int]:
    """The calls that are let through or refused by their arguments, by name."""
    return _column(_CHECKED, ARCHITECTURES[machine][0])
