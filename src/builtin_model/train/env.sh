# Memory settings that keep large blocks mapped, on huge pages: worth 20-40% of the speed of training on a CPU.
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456 OMP_NUM_THREADS=${THREADS:-2}
# Waiting threads sleep at once: beside other programs, two threads of the lowest priority may have to share one core.
export OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=1000
