/*
 * bind NODE COMMAND...: runs a command whose memory is that of one NUMA node alone (set_mempolicy(2)), as
 * "numactl --membind" does.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/mempolicy.h>

int main(int argc, char **argv)
{
	unsigned long node = argc > 2 ? strtoul(argv[1], NULL, 10) : 64;
	unsigned long mask = 1ul << node % 64;

	if (argc < 3 || node > 63) {
		fprintf(stderr, "usage: bind NODE COMMAND...\n");
		return 2;
	}
	if (syscall(SYS_set_mempolicy, MPOL_BIND, &mask, 65ul)) {
		perror("bind: set_mempolicy");
		return 1;
	}
	execvp(argv[2], argv + 2);
	perror("bind: exec");
	return 1;
}
