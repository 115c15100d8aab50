# SPDX-License-Identifier: MIT
#
# instar: one Makefile, non-recursive. `make` builds build/instar-launch and images/*.elf;
# `make help` lists the rest. Every pure .c is built twice: for the guest, and for the host with
# sanitizers.

OPS      := noop info resize rebase
FORMATS  := err blk table formats crc32c raw qcow2 qcow2_tables qcow2_map qcow2_walk \
            qcow2_bitmap vhd vhdx vhdx_metadata vhdx_log vhdx_map vmdk vmdk_split \
            vmdk_descriptor
PLANNERS := plan check apply undo scratch copy rebase_scan raw \
            qcow2 qcow2_header qcow2_refcount qcow2_alloc qcow2_end qcow2_data qcow2_census \
            qcow2_grow qcow2_fill qcow2_tail qcow2_shrink qcow2_drop qcow2_rebuild \
            qcow2_bitmaps qcow2_bitmap_change \
            qcow2_rebase qcow2_rebase_header qcow2_rebase_copy qcow2_copy_tables qcow2_copy_data \
            vhd vhd_size vhd_footer vhd_blocks vhd_grow vhd_shrink vhd_fixed \
            vhdx vhdx_survey vhdx_header vhdx_log vhdx_bat vhdx_commit vhdx_grow vhdx_shrink \
            vmdk vmdk_survey vmdk_text vmdk_grow vmdk_child vmdk_end vmdk_shrink \
            vmdk_split vmdk_lines vmdk_rebase vmdk_rebase_copy
KERNEL   := start memory trap serial virtio virtio_mmio virtio_pci virtio_blk lib
OPSBASE  := main disks report newsize images planhost
LAUNCHER := main chain extents policy commands options size err codes text json paths disks \
            locks growth insert undo recover request raw machines cmdline qemu qmp frames vm run \
            outcome plan print rebase hand decode
TESTS    := $(basename $(notdir $(wildcard tests/test_*.c)))
GUESTS   := $(basename $(notdir $(wildcard tests/guest/*.c)))

B := build
ifeq ($(origin CC),default)
CC := gcc
endif
PYTHON := /usr/bin/python3
VERSION := 0.1.0

WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wundef \
        -Wno-missing-field-initializers $(WERROR)
GUEST_CFLAGS := -std=gnu11 -O2 -g -ffreestanding -fno-stack-protector -fno-pic -no-pie \
        -mno-red-zone -fcf-protection=none -fno-asynchronous-unwind-tables \
        -ffunction-sections -fdata-sections -fno-builtin-printf -fmacro-prefix-map=$(CURDIR)/= $(WARN)
HOST_CFLAGS := -std=gnu11 -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined \
        -fno-sanitize-recover=all $(WARN)
LAUNCHER_CFLAGS := -std=gnu11 -O2 -g -fstack-protector-strong -D_FORTIFY_SOURCE=2 -D_GNU_SOURCE \
        -DINSTAR_VERSION='"$(VERSION)"' $(WARN)

INC_kernel   := -Ikernel
INC_formats  := -Iformats
INC_planner  := -Iplanner -Iformats
INC_ops      := -Iops -Ikernel -Iformats -Iplanner -I$(B)/gen
INC_launcher := -Ilauncher -I$(B)/contract
INC_tests    := -Itests -Iops -Iplanner -Iformats -I$(B)/gen

IMAGES := $(OPS:%=images/%.elf)

.DEFAULT_GOAL := all
.PHONY: all help clean check check-unit check-fuzz fuzz check-pure check-lint check-image-sizes \
        check-e2e demo bench \
        deps deps-test format guests tests install uninstall deb
all: $(B)/instar-launch $(IMAGES)

# ---- generated: the contract ----

$(B)/gen/instar.pb.c: ops/instar.proto ops/instar.options
	@mkdir -p $(@D)
	PATH=/usr/bin:$$PATH protoc -Iops --nanopb_opt=-Iops --nanopb_out=$(@D) $<
$(B)/gen/instar.pb.h: $(B)/gen/instar.pb.c ;
$(B)/gen/instar_pb2.py: ops/instar.proto
	@mkdir -p $(@D)
	protoc -Iops --python_out=$(@D) $<

# What of our own the launcher may include besides the generated code.
CONTRACT := $(addprefix $(B)/contract/,instar.pb.h frame.h crc32c.h newsize.h)
$(B)/contract/instar.pb.h: $(B)/gen/instar.pb.h
$(B)/contract/frame.h $(B)/contract/newsize.h: $(B)/contract/%: ops/%
$(B)/contract/crc32c.h: formats/crc32c.h
$(CONTRACT):
	@mkdir -p $(@D)
	cp $< $@

# ---- the guest: one unikernel per operation ----

define compile_guest # folder
$(B)/guest/$(1)/%.o: $(1)/%.c | $(B)/gen/instar.pb.h
	@mkdir -p $$(@D)
	$$(CC) $$(GUEST_CFLAGS) $$(INC_$(1)) -MMD -MP -c -o $$@ $$<
endef
$(foreach d,kernel formats planner ops,$(eval $(call compile_guest,$(d))))

$(B)/guest/kernel/boot.o: kernel/boot.S
	@mkdir -p $(@D)
	$(CC) -Ikernel -MMD -MP -c -o $@ $<
$(B)/guest/gen/instar.pb.o: $(B)/gen/instar.pb.c
	@mkdir -p $(@D)
	$(CC) $(GUEST_CFLAGS) -I$(B)/gen -c -o $@ $<

KERNEL_O := $(B)/guest/kernel/boot.o $(KERNEL:%=$(B)/guest/kernel/%.o)
PURE_O   := $(FORMATS:%=$(B)/guest/formats/%.o) $(PLANNERS:%=$(B)/guest/planner/%.o)
# Built for size: resize.elf has a limit, and the time of a plan goes into I/O.
$(PLANNERS:%=$(B)/guest/planner/%.o): GUEST_CFLAGS += -Os
$(addprefix $(B)/guest/formats/,vmdk.o vmdk_split.o vmdk_descriptor.o vhd.o vhdx.o vhdx_log.o \
        vhdx_metadata.o qcow2.o): GUEST_CFLAGS += -Os
# Operations that look into compressed clusters link the decoders, and may be larger for it.
DECODING := resize rebase
UNPACK   := inflate qcow2_unpack vmdk_unpack
UNPACK_O := $(UNPACK:%=$(B)/guest/formats/%.o)
GUEST_O  := $(KERNEL_O) $(OPSBASE:%=$(B)/guest/ops/%.o) $(PURE_O) $(B)/guest/gen/instar.pb.o
NANOPB   := -lprotobuf-nanopb
GUEST_LDFLAGS := -static -nostdlib -no-pie -Wl,--gc-sections -Wl,-z,noexecstack -Wl,--build-id=none \
        -Wl,-z,max-page-size=4096 -Wl,-T,kernel/kernel.lds

# libzstd's decoders of its versions 0.5 to 0.7 stay out: formats/qcow2_unpack.c says why.
NO_LEGACY := $(foreach v,05 06 07,$(foreach f,ZBUFFv$(v)_createDCtx ZBUFFv$(v)_freeDCtx \
        ZBUFFv$(v)_decompressContinue ZBUFFv$(v)_decompressInitDictionary ZSTDv$(v)_createDCtx \
        ZSTDv$(v)_freeDCtx ZSTDv$(v)_decompress_usingDict ZSTDv$(v)_findFrameSizeInfoLegacy \
        ZSTDv$(v)_getFrameParams,-Wl,--defsym=$(f)=qcow2_zstd_legacy))
# And zlib's CRC, 11 KiB with its tables, which only gzip has: formats/inflate.c asks for no gzip.
NO_GZIP := -Wl,--defsym=crc32=inflate_gzip

# Of every planner, an image holds what its operation calls: planner/members.h.
$(B)/guest/resize.elf: LEFT_OUT := qcow2_rebase vmdk_rebase
$(B)/guest/rebase.elf: LEFT_OUT := raw_resize qcow2_resize vhd_resize vhdx_resize vmdk_resize

# build/guest/<op>.elf holds the symbols for gdb; images/<op>.elf is what boots.
$(DECODING:%=$(B)/guest/%.elf): DECODER := $(UNPACK_O) $(NO_LEGACY) $(NO_GZIP) -lz -lzstd
$(DECODING:%=$(B)/guest/%.elf): $(UNPACK_O)
$(B)/guest/%.elf: $(B)/guest/ops/%.o $(GUEST_O) kernel/kernel.lds
	$(CC) $(GUEST_LDFLAGS) -o $@ $(KERNEL_O) $< $(filter-out $(KERNEL_O),$(GUEST_O)) $(DECODER) $(NANOPB) $(LEFT_OUT:%=-Wl,--defsym=%=0)
images/%.elf: $(B)/guest/%.elf
	objcopy --strip-all $< $@

# Small programs on the bare kernel: the print-only floor, and those that must fault.
$(B)/guest/tests/%.o: tests/guest/%.c
	@mkdir -p $(@D)
	$(CC) $(GUEST_CFLAGS) -Ikernel -MMD -MP -c -o $@ $<
$(B)/guests/%.elf: $(B)/guest/tests/%.o $(KERNEL_O) kernel/kernel.lds
	@mkdir -p $(@D)
	$(CC) $(GUEST_LDFLAGS) -o $@ $(KERNEL_O) $<
guests: $(GUESTS:%=$(B)/guests/%.elf)

# ---- the launcher ----

$(B)/launcher/%.o: launcher/%.c $(CONTRACT)
	@mkdir -p $(@D)
	$(CC) $(LAUNCHER_CFLAGS) $(INC_launcher) -MMD -MP -c -o $@ $<
LAUNCHER_O := $(LAUNCHER:%=$(B)/launcher/%.o)
# The contract's own code, as the launcher links it.
$(B)/launcher/contract/instar.pb.o: $(B)/gen/instar.pb.c
$(B)/launcher/contract/newsize.o: ops/newsize.c
$(B)/launcher/contract/crc32c.o: formats/crc32c.c
CONTRACT_O := $(addprefix $(B)/launcher/contract/,instar.pb.o newsize.o crc32c.o)
$(CONTRACT_O): $(CONTRACT)
	@mkdir -p $(@D)
	$(CC) $(LAUNCHER_CFLAGS) -I$(B)/contract -c -o $@ $(filter %.c,$^)

$(B)/instar-launch: $(LAUNCHER_O) $(CONTRACT_O)
	$(CC) $(LAUNCHER_CFLAGS) -o $@ $^ -lprotobuf-nanopb

# ---- host builds for tests: sanitized ----

define compile_host # folder
$(B)/host/$(1)/%.o: $(1)/%.c | $(B)/gen/instar.pb.h
	@mkdir -p $$(@D)
	$$(CC) $$(HOST_CFLAGS) $$(INC_$(1)) -MMD -MP -c -o $$@ $$<
endef
$(foreach d,formats planner ops tests,$(eval $(call compile_host,$(d))))
$(B)/host/gen/instar.pb.o: $(B)/gen/instar.pb.c
	@mkdir -p $(@D)
	$(CC) $(HOST_CFLAGS) -I$(B)/gen -c -o $@ $<

HOST_PURE_O := $(FORMATS:%=$(B)/host/formats/%.o) $(PLANNERS:%=$(B)/host/planner/%.o) \
        $(UNPACK:%=$(B)/host/formats/%.o)
# Backends and helpers shared by the tests: every .c of tests/ that is neither a test nor a main.
HOST_SUPPORT_O := $(patsubst tests/%.c,$(B)/host/tests/%.o,\
        $(filter-out tests/test_%.c tests/%_main.c tests/fuzz_%.c,$(wildcard tests/*.c)))
$(B)/tests/test_%: $(B)/host/tests/test_%.o $(HOST_SUPPORT_O) $(HOST_PURE_O) \
        $(B)/host/ops/newsize.o $(B)/host/gen/instar.pb.o
	@mkdir -p $(@D)
	$(CC) $(HOST_CFLAGS) -o $@ $^ -lprotobuf-nanopb -lz -lzstd
$(B)/tests/bench-image: tests/bench_image_main.c
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -O2 $(WARN) -o $@ $<
# An operation as a host program, over files: host_main.c in the place of kernel/.
$(B)/tests/host-%: $(B)/host/tests/host_main.o $(B)/host/ops/%.o $(HOST_SUPPORT_O) $(HOST_PURE_O) \
        $(addprefix $(B)/host/ops/,newsize.o images.o planhost.o) $(B)/host/gen/instar.pb.o
	@mkdir -p $(@D)
	$(CC) $(HOST_CFLAGS) -o $@ $^ -lprotobuf-nanopb -lz -lzstd

# ---- fuzzing: the target built by $(CC) replays the corpus; by clang, with libFuzzer, it explores ----

CLANG := clang
FUZZ_PARTS := fuzz_evil fuzz_input fuzz_trial blk_mem qcow2_judge test
$(B)/tests/test_mutate: $(B)/host/tests/fuzz_evil.o $(B)/host/tests/fuzz_trial.o

FUZZ_HOST_O := $(FUZZ_PARTS:%=$(B)/host/tests/%.o) $(HOST_PURE_O)
$(B)/fuzz/replay-qcow2: $(B)/host/tests/fuzz_qcow2.o
$(B)/fuzz/replay-canary: $(B)/host/tests/fuzz_qcow2-canary1.o
$(B)/fuzz/replay-qcow2 $(B)/fuzz/replay-canary: $(B)/host/tests/fuzz_main.o $(FUZZ_HOST_O)
	@mkdir -p $(@D)
	$(CC) $(HOST_CFLAGS) -o $@ $^ -lz -lzstd

# The other formats: one target, which links what each format adds.
FUZZ_DISKS := vhd vhdx vmdk
FUZZ_DISK_PARTS := fuzz_change fuzz_evil fuzz_input blk_mem test
FUZZ_DISK_HOST_O := $(FUZZ_DISK_PARTS:%=$(B)/host/tests/%.o) $(HOST_PURE_O)
FUZZ_OF_vhd  := vhd_judge vhd_make
FUZZ_OF_vhdx := vhdx_judge vhdx_make qcow2_judge qcow2_make
FUZZ_OF_vmdk := vmdk_judge
define fuzz_disk # format
$(B)/fuzz/replay-$(1): $(B)/host/tests/fuzz_disk.o
$(B)/fuzz/replay-canary-$(1): $(B)/host/tests/fuzz_disk-canary1.o
$(B)/fuzz/$(1): $(B)/fuzz/tests/fuzz_disk.o
$(B)/fuzz/canary-$(1): $(B)/fuzz/tests/fuzz_disk-canary2.o
$(B)/fuzz/replay-$(1) $(B)/fuzz/replay-canary-$(1): $(B)/host/tests/fuzz_main.o \
        $(B)/host/tests/fuzz_$(1).o $(FUZZ_OF_$(1):%=$(B)/host/tests/%.o) $(FUZZ_DISK_HOST_O)
	@mkdir -p $$(@D)
	$$(CC) $$(HOST_CFLAGS) -o $$@ $$^ -lz -lzstd
$(B)/fuzz/$(1) $(B)/fuzz/canary-$(1): $(B)/fuzz/tests/fuzz_$(1).o \
        $(FUZZ_OF_$(1):%=$(B)/fuzz/tests/%.o) $(FUZZ_DISK_HOST_O:$(B)/host/%=$(B)/fuzz/%)
	$$(CLANG) $$(FUZZ_CFLAGS) -fsanitize=fuzzer -o $$@ $$^ -lz -lzstd
endef
$(foreach f,$(FUZZ_DISKS),$(eval $(call fuzz_disk,$(f))))
$(B)/fuzz/make-disk-seeds: $(B)/host/tests/fuzz_disk_seeds_main.o $(B)/host/tests/fuzz_input.o \
        $(HOST_SUPPORT_O) $(HOST_PURE_O)
	@mkdir -p $(@D)
	$(CC) $(HOST_CFLAGS) -o $@ $^ -lz -lzstd
$(B)/fuzz/make-seeds: $(B)/host/tests/fuzz_seeds_main.o $(B)/host/tests/fuzz_input.o \
        $(HOST_SUPPORT_O) $(HOST_PURE_O)
	@mkdir -p $(@D)
	$(CC) $(HOST_CFLAGS) -o $@ $^ -lz -lzstd
$(B)/host/tests/%-canary1.o: tests/%.c
	@mkdir -p $(@D)
	$(CC) $(HOST_CFLAGS) $(INC_tests) -DFUZZ_CANARY=1 -MMD -MP -c -o $@ $<

FUZZ_CFLAGS := $(HOST_CFLAGS) -fsanitize=fuzzer-no-link
define compile_fuzz # folder
$(B)/fuzz/$(1)/%.o: $(1)/%.c
	@mkdir -p $$(@D)
	$(CLANG) $$(FUZZ_CFLAGS) $$(INC_$(1)) -MMD -MP -c -o $$@ $$<
endef
$(foreach d,formats planner tests,$(eval $(call compile_fuzz,$(d))))
$(B)/fuzz/tests/%-canary2.o: tests/%.c
	@mkdir -p $(@D)
	$(CLANG) $(FUZZ_CFLAGS) $(INC_tests) -DFUZZ_CANARY=2 -MMD -MP -c -o $@ $<
FUZZ_CLANG_O := $(patsubst $(B)/host/%,$(B)/fuzz/%,$(FUZZ_HOST_O))
$(B)/fuzz/qcow2: $(B)/fuzz/tests/fuzz_qcow2.o
$(B)/fuzz/canary: $(B)/fuzz/tests/fuzz_qcow2-canary2.o
$(B)/fuzz/qcow2 $(B)/fuzz/canary: $(FUZZ_CLANG_O)
	$(CLANG) $(FUZZ_CFLAGS) -fsanitize=fuzzer -o $@ $^ -lz -lzstd

# Has this clang a libFuzzer? It stands in a package of its own, named by clang's version.
FUZZER_LINKS = mkdir -p $(B)/fuzz && \
        echo 'int LLVMFuzzerTestOneInput(const char *p, long n) { return !p && n; }' | \
        $(CLANG) -x c -fsanitize=fuzzer,address,undefined -o $(B)/fuzz/links - >$(B)/fuzz/links.txt 2>&1

# ---- what has to be installed ----

BUILD_PACKAGES := gcc libc6-dev make binutils nanopb libnanopb-dev protobuf-compiler \
        python3-protobuf zlib1g-dev libzstd-dev
RUN_PACKAGES   := qemu-system-x86
DEMO_PACKAGES  := $(BUILD_PACKAGES) $(RUN_PACKAGES) qemu-utils
TEST_PACKAGES  := $(DEMO_PACKAGES) python3-pytest 7zip libqcow-utils libvmdk-utils grub-common grub-pc-bin xorriso mtools clang \
        scdoc dpkg-dev

# Installs what is missing with apt-get (with sudo if not root); elsewhere it says what is needed.
define install
	@missing=$$(for p in $(1); do \
	    dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	[ -z "$$missing" ] && exit 0; \
	if ! command -v apt-get >/dev/null; then \
	    echo "Needed, under Debian's names (this is not a Debian system; if you have them, go on):"; \
	    echo $(1); exit 0; fi; \
	sudo=; [ $$(id -u) = 0 ] || sudo=sudo; \
	echo "Installing:" $$missing; \
	$$sudo apt-get update -qq && \
	$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing
endef
deps:
	$(call install,$(DEMO_PACKAGES))
deps-test:
	$(call install,$(TEST_PACKAGES))
	@$(FUZZER_LINKS) || ! command -v apt-get >/dev/null || { \
	    p=libclang-rt-$$($(CLANG) -dumpversion | cut -d. -f1)-dev; sudo=; [ $$(id -u) = 0 ] || sudo=sudo; \
	    echo "Installing: $$p"; $$sudo apt-get update -qq; \
	    $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$p || \
	        echo "There is no $$p: fuzzing will be limited to the corpus"; }

# ---- demo ----

SIZE ?= +5G
demo: deps
	@$(MAKE) -s all
	@sh tests/demo.sh "$(IMAGE)" "$(SIZE)"

# ---- install ----

PREFIX  := /usr/local
BINDIR  := $(DESTDIR)$(PREFIX)/bin
LIBDIR  := $(DESTDIR)$(PREFIX)/lib/instar
MANDIR  := $(DESTDIR)$(PREFIX)/share/man/man1
COMPDIR := $(DESTDIR)$(PREFIX)/share/bash-completion/completions

$(B)/instar-launch.1: launcher/instar-launch.1.scd
	@command -v scdoc >/dev/null || { echo 'The manual needs scdoc: apt install scdoc'; exit 1; }
	scdoc <$< >$@

install: all $(B)/instar-launch.1
	install -d $(BINDIR) $(LIBDIR) $(MANDIR) $(COMPDIR)
	install -m 755 $(B)/instar-launch $(BINDIR)
	install -m 644 $(IMAGES) $(LIBDIR)
	install -m 644 $(B)/instar-launch.1 $(MANDIR)
	install -m 644 launcher/instar-launch.bash $(COMPDIR)/instar-launch

uninstall:
	rm -f $(BINDIR)/instar-launch $(IMAGES:images/%=$(LIBDIR)/%) $(MANDIR)/instar-launch.1 \
	    $(COMPDIR)/instar-launch
	[ ! -d $(LIBDIR) ] || rmdir --ignore-fail-on-non-empty $(LIBDIR)

# A Debian package. Which libraries the program needs is found by dpkg-shlibdeps, which wants to
# stand beside a debian/control.
define DEB_CONTROL
Package: instar
Version: $(VERSION)
Architecture: amd64
Maintainer: The instar authors <instar@localhost>
Section: admin
Priority: optional
Depends: qemu-system-x86 (>= 1:7.0), LIBRARIES
Description: change disk images that nobody has to trust
 Operations on disk images of virtual machines, such as resize and info, each of
 which is a small kernel that runs in a stock QEMU: no byte of an image is
 interpreted on the host.
endef
export DEB_CONTROL

DEB := $(B)/instar_$(VERSION)_amd64.deb
deb:
	@rm -rf $(B)/deb
	@$(MAKE) -s install DESTDIR=$(B)/deb/root PREFIX=/usr
	@strip $(B)/deb/root/usr/bin/instar-launch
	@gzip -9n $(B)/deb/root/usr/share/man/man1/instar-launch.1
	@install -D -m 644 LICENSE $(B)/deb/root/usr/share/doc/instar/copyright
	@mkdir -p $(B)/deb/debian $(B)/deb/root/DEBIAN && touch $(B)/deb/debian/control
	@libraries=$$(cd $(B)/deb && dpkg-shlibdeps -O root/usr/bin/instar-launch) && \
	    echo "$$DEB_CONTROL" | sed "s/LIBRARIES/$${libraries#*=}/" >$(B)/deb/root/DEBIAN/control
	dpkg-deb --root-owner-group --build $(B)/deb/root $(DEB)

# ---- gdb ----

# An operation's kernel, stopped at its first instruction, under gdb, on a copy of IMAGE with a GiB
# of room behind it; images/README.md has an example. QEMU is gdb's child, and deaf to its ^C.
GDB := gdb
gdb-resize: REQUEST ?= resize { kind: PLUS size: 5368709120 }
gdb-%: REQUEST ?= $* { }
gdb-%: images/%.elf $(B)/guest/%.elf
	@[ -n "$(IMAGE)" ] || { echo "make $@ IMAGE=disk.qcow2 [REQUEST='$(REQUEST)']"; exit 1; }
	@rm -f $(B)/gdb.img $(B)/gdb.in $(B)/gdb.out
	@cp --sparse=always -- "$(IMAGE)" $(B)/gdb.img
	@echo "disks { length: $$(stat -c %s $(B)/gdb.img) writable: true } $(REQUEST)" | \
	    protoc --encode=instar.Request ops/instar.proto >$(B)/gdb.request
	@truncate -s +1G $(B)/gdb.img
	@mkfifo $(B)/gdb.in $(B)/gdb.out
	@cat $(B)/gdb.out >$(B)/gdb.serial & \
	$(GDB) -q $(B)/guest/$*.elf -ex 'target remote | exec setsid qemu-system-x86_64 -gdb stdio -S \
	    -M microvm,acpi=off -global virtio-mmio.force-legacy=false -m 128 -display none \
	    -nodefaults -no-user-config -device isa-debug-exit,iobase=0xf4,iosize=4 \
	    -chardev pipe,id=serial,path=$(B)/gdb -serial chardev:serial \
	    -kernel images/$*.elf -initrd $(B)/gdb.request \
	    -blockdev driver=file,node-name=f0,filename=$(B)/gdb.img,discard=unmap \
	    -device virtio-blk-device,drive=f0,bus=virtio-mmio-bus.0,werror=report,rerror=report' \
	    -ex 'hbreak kernel_main' -ex continue; kill $$! 2>/dev/null; true

# ---- check ----

check: deps-test
	@$(MAKE) -j2 all guests tests
	@$(MAKE) check-lint check-pure check-image-sizes check-unit check-fuzz check-e2e

# The objects and programs that the tests use.
tests: $(TESTS:%=$(B)/tests/%) $(OPS:%=$(B)/tests/host-%) $(B)/gen/instar_pb2.py
	@:

check-unit: $(TESTS:%=$(B)/tests/%)
	@printf '%s\n' $^ | xargs -P 2 -I {} sh -c \
	    '{} >{}.log 2>&1; s=$$?; echo "== {}"; cat {}.log; [ $$s = 0 ] || exit 255'

# The corpus and the canaries; without libFuzzer, what needs none. `make fuzz T=minutes` explores.
FUZZ_REPLAY := $(addprefix $(B)/fuzz/,make-seeds make-disk-seeds replay-qcow2 replay-canary \
        $(FUZZ_DISKS:%=replay-%) $(FUZZ_DISKS:%=replay-canary-%))
FUZZ_CANARIES := $(addprefix $(B)/fuzz/,canary $(FUZZ_DISKS:%=canary-%))
T ?= 10
FUZZ ?= qcow2 $(FUZZ_DISKS)
check-fuzz: $(FUZZ_REPLAY)
	@if $(FUZZER_LINKS); then \
	    $(MAKE) --no-print-directory -j2 $(FUZZ:%=$(B)/fuzz/%) $(FUZZ_CANARIES); \
	    else rm -f $(FUZZ_CANARIES); echo "$(CLANG) has no libFuzzer; why: $(B)/fuzz/links.txt"; fi
	@$(PYTHON) tests/fuzz.py check $(B) $(FUZZ)
fuzz: $(FUZZ_REPLAY)
	@$(FUZZER_LINKS) || { cat $(B)/fuzz/links.txt; echo "'make fuzz' needs clang with libFuzzer"; exit 1; }
	@$(MAKE) -j2 $(FUZZ:%=$(B)/fuzz/%)
	@$(PYTHON) tests/fuzz.py explore $(B) $(T) $(FUZZ)

check-e2e: all guests tests
	$(PYTHON) -m pytest -q -p no:cacheprovider -rs tests

# formats/ and planner/ may need nothing but these, whoever links them.
check-pure: $(PURE_O) $(UNPACK_O)
	@ld -r -o $(B)/pure.o $(PURE_O) $(UNPACK_O)
	@bad=$$(nm -u $(B)/pure.o | awk '{print $$2}' | \
	    grep -vxE 'mem(cpy|move|set|cmp)|strlen|assert_failed|(inflate|ZSTD_).*|_GLOBAL_OFFSET_TABLE_'); \
	[ -z "$$bad" ] || { echo "formats/ and planner/ are not pure; they need:" $$bad; exit 1; }
	@echo "pure: formats/ and planner/ need mem*, strlen and assert_failed only"

check-image-sizes: $(IMAGES)
	@for f in $(IMAGES); do n=$$(stat -c %s $$f); max=131072; \
	    case " $(DECODING:%=images/%.elf) " in *" $$f "*) max=393216;; esac; \
	    echo "$$f: $$n bytes, under $$max"; [ $$n -lt $$max ] || exit 1; done

# Headers compile alone, no include climbs out of its folder, formats are told apart by tables, and
# no line is longer than 100 columns.
LINT_HEADERS := $(foreach d,kernel formats planner ops launcher,$(wildcard $(d)/*.h))
LINT_WIDTH := $(foreach d,kernel formats planner ops launcher,$(wildcard $(d)/*.[chS]))
check-lint: $(CONTRACT)
	@! grep -nE '^.{101}' $(LINT_WIDTH)
	@! grep -nE '#include "\.\./' kernel/*.[chS] formats/*.[ch] planner/*.[ch] ops/*.[ch] launcher/*.[ch]
	@! grep -nE 'switch \([^)]*format' kernel/*.c formats/*.c planner/*.c ops/*.c launcher/*.c
	@for h in $(LINT_HEADERS); do \
	    $(CC) -std=gnu11 -D_GNU_SOURCE -fsyntax-only -Wall -Werror \
	        $$(case $$h in kernel/*) echo $(INC_kernel);; formats/*) echo $(INC_formats);; \
	           planner/*) echo $(INC_planner);; ops/*) echo $(INC_ops);; launcher/*) echo $(INC_launcher);; \
	           esac) -x c $$h || exit 1; done
	@echo "lint: headers compile alone, includes stay at home, lines fit"

bench: deps
	@$(MAKE) -s all guests tests $(B)/tests/bench-image
	$(PYTHON) tests/bench.py

# ---- clean, help ----

format:
	clang-format -i $(foreach d,kernel formats planner ops launcher tests,$(wildcard $(d)/*.[ch]))

clean:
	rm -rf $(B) $(IMAGES)

help:
	@echo 'make              build build/instar-launch and images/*.elf'
	@echo 'make demo         install what is missing, build, grow a sample image [IMAGE=my.qcow2 SIZE=+5G]'
	@echo 'make check        install what is missing, build, run every test'
	@echo 'make bench        measure, side by side, and print a table'
	@echo 'make gdb-resize   the kernel of resize (or info, noop) under gdb, on a copy of IMAGE='
	@echo 'make fuzz T=10    look for images that break the planners, for ten minutes [FUZZ=vhdx]'
	@echo 'make install      into DESTDIR= PREFIX=/usr/local; make uninstall takes it away again'
	@echo 'make deb          build/instar_$(VERSION)_amd64.deb'
	@echo 'make check-unit check-fuzz check-e2e check-lint check-pure check-image-sizes   parts of check'
	@echo 'make format clean'

-include $(shell find $(B) -name '*.d' 2>/dev/null)
.SECONDARY:
.DELETE_ON_ERROR:
