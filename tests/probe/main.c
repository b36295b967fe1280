/* A guest that does what its command line says, word by word, and prints what it finds to the first
 * serial port. The table at the end lists the words; those with numbers are written name=a:b:c. */

#include "probe.h"

static uint64_t start_info;

/* The numbers of a word: name=a:b:c. */
struct arguments {
    unsigned count;
    uint64_t values[3];
};

static bool is_end(char c)
{
    return c == 0 || c == ' ' || c == '\n' || c == '\r';
}

static int digit_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return 99;
}

/* Reads a number, decimal or with 0x, and moves `text` past it. */
static bool read_number(const char **text, uint64_t *value)
{
    int base = 10, digits = 0;
    if ((*text)[0] == '0' && (*text)[1] == 'x') {
        base = 16;
        *text += 2;
    }
    for (*value = 0; digit_value(**text) < base; (*text)++, digits++)
        *value = *value * base + digit_value(**text);
    return digits > 0;
}

/* Reads what follows the name in name=a:b:c. */
static bool read_arguments(const char *text, struct arguments *arguments)
{
    for (char separator = '='; !is_end(*text); separator = ':') {
        if (arguments->count == 3 || *text++ != separator ||
            !read_number(&text, &arguments->values[arguments->count++]))
            return false;
    }
    return true;
}

static void put_value(uint64_t value)
{
    put_text(" ");
    put_hex(value);
    put_text("\n");
}

static void do_port_read(const struct arguments *a, unsigned width)
{
    put_value(port_read(a->values[0], width));
}

static void do_port_write(const struct arguments *a, unsigned width)
{
    port_write(a->values[0], width, a->values[1]);
    put_text(" done\n");
}

static void do_memory_read(const struct arguments *a, unsigned width)
{
    put_value(memory_read(a->values[0], width));
}

static void do_memory_write(const struct arguments *a, unsigned width)
{
    memory_write(a->values[0], width, a->values[1]);
    put_text(" done\n");
}

static uint8_t string_buffer[STRING_BUFFER];

static uint32_t string_count(const struct arguments *a, unsigned width)
{
    uint64_t most = STRING_BUFFER / width;
    return a->values[1] < most ? a->values[1] : most;
}

/* Reads port A, B times, with one instruction, and prints the bytes that came. */
static void do_string_read(const struct arguments *a, unsigned width)
{
    uint32_t count = string_count(a, width);
    port_read_string(a->values[0], width, count, string_buffer);
    put_text(" ");
    put_dump((uint64_t)string_buffer, (uint64_t)count * width);
    put_text("\n");
}

/* Writes the bytes 'A', 'B', and so on to port A, B times, with one instruction. */
static void do_string_write(const struct arguments *a, unsigned width)
{
    uint32_t count = string_count(a, width);
    for (uint32_t i = 0; i < count * width; i++)
        string_buffer[i] = 'A' + i % 26;
    put_text(" ");
    port_write_string(a->values[0], width, count, string_buffer);
    put_text("\n");
}

/* Reads every port from A to B, with each width. */
static void do_sweep_read(const struct arguments *a, unsigned width)
{
    (void)width;
    for (uint64_t port = a->values[0]; port <= a->values[1] && port <= 0xffff; port++)
        for (unsigned bytes = 1; bytes <= 4; bytes *= 2)
            port_read(port, bytes);
    put_text(" done\n");
}

/* Writes C to every port from A to B, with each width. */
static void do_sweep_write(const struct arguments *a, unsigned width)
{
    (void)width;
    for (uint64_t port = a->values[0]; port <= a->values[1] && port <= 0xffff; port++)
        for (unsigned bytes = 1; bytes <= 4; bytes *= 2)
            port_write(port, bytes, a->values[2]);
    put_text(" done\n");
}

/* CPUID leaf A, subleaf B. */
static void do_cpuid(const struct arguments *a, unsigned width)
{
    (void)width;
    uint32_t eax = a->values[0], ebx, ecx = a->values[1], edx;
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    const uint32_t registers[] = {eax, ebx, ecx, edx};
    for (unsigned i = 0; i < 4; i++) {
        put_text(" ");
        put_hex(registers[i]);
    }
    put_text("\n");
}

static void do_firmware(const struct arguments *a, unsigned which)
{
    (void)a;
    put_text("\n");
    switch (which) {
    case 0:
        print_memory_map(start_info);
        break;
    case 1:
        print_modules(start_info);
        break;
    case 2:
        print_acpi(start_info);
        break;
    default:
        print_smbios();
    }
}

/* Sends A bytes of input back. */
static void do_echo(const struct arguments *a, unsigned width)
{
    (void)width;
    put_text(" ");
    for (uint64_t i = 0; i < a->values[0]; i++)
        put_char(get_char());
    put_text("\n");
}

static void run(const char *words);

/* Does lines of words that come by the serial port, for as long as the machine lives. */
static void do_listen(const struct arguments *a, unsigned width)
{
    (void)a;
    (void)width;
    put_text(" ready\n");
    for (;;) {
        char line[256];
        unsigned length = 0;
        for (char c; (c = get_char()) != '\n';)
            if (length < sizeof(line) - 1)
                line[length++] = c;
        line[length] = 0;
        run(line);
    }
}

/* 0: starts all other CPUs, which count; 1: which halt; 2: counts NMIs; 3: counts for ever. */
static void do_cpus(const struct arguments *a, unsigned what)
{
    (void)a;
    put_text(" done\n");
    switch (what) {
    case 0:
    case 1:
        start_cpus(what);
        break;
    case 2:
        count_nmis();
        break;
    default:
        count();
    }
}

/* Prints the letters, again and again, and for each alphabet a line. */
static void do_chatter(const struct arguments *a, unsigned width)
{
    (void)a;
    (void)width;
    put_text(" done\n");
    for (;;)
        put_text("abcdefghijklmnopqrstuvwxyz\n");
}

/* How to end. Where firmware offers no way to, the words that follow are done. */
static void do_end(const struct arguments *a, unsigned how)
{
    (void)a;
    put_text("\n");
    if (how == 0)
        power_off(start_info);
    else if (how == 1)
        reset(start_info);
    else
        triple_fault();
}

static const struct word {
    const char *name;
    void (*act)(const struct arguments *arguments, unsigned parameter);
    unsigned parameter;
    unsigned needed;
} words[] = {
    {"memmap", do_firmware, 0, 0},
    {"modules", do_firmware, 1, 0},
    {"acpi", do_firmware, 2, 0},
    {"smbios", do_firmware, 3, 0},
    {"cpuid", do_cpuid, 0, 1},
    {"inb", do_port_read, 1, 1},
    {"inw", do_port_read, 2, 1},
    {"inl", do_port_read, 4, 1},
    {"outb", do_port_write, 1, 2},
    {"outw", do_port_write, 2, 2},
    {"outl", do_port_write, 4, 2},
    {"insb", do_string_read, 1, 2},
    {"insw", do_string_read, 2, 2},
    {"insl", do_string_read, 4, 2},
    {"outsb", do_string_write, 1, 2},
    {"outsw", do_string_write, 2, 2},
    {"outsl", do_string_write, 4, 2},
    {"sweepin", do_sweep_read, 0, 2},
    {"sweepout", do_sweep_write, 0, 3},
    {"readb", do_memory_read, 1, 1},
    {"readw", do_memory_read, 2, 1},
    {"readl", do_memory_read, 4, 1},
    {"readq", do_memory_read, 8, 1},
    {"writeb", do_memory_write, 1, 2},
    {"writew", do_memory_write, 2, 2},
    {"writel", do_memory_write, 4, 2},
    {"writeq", do_memory_write, 8, 2},
    {"echo", do_echo, 0, 1},
    {"listen", do_listen, 0, 0},
    {"countcpus", do_cpus, 0, 0},
    {"haltcpus", do_cpus, 1, 0},
    {"nmis", do_cpus, 2, 0},
    {"count", do_cpus, 3, 0},
    {"chatter", do_chatter, 0, 0},
    {"poweroff", do_end, 0, 0},
    {"reset", do_end, 1, 0},
    {"triple", do_end, 2, 0},
};

/* If `text` is this word, moves past its name. */
static bool take_name(const char **text, const char *name)
{
    const char *rest = *text;
    while (*name && *rest == *name)
        name++, rest++;
    if (*name || (*rest != '=' && !is_end(*rest)))
        return false;
    *text = rest;
    return true;
}

/* Does one word, after printing it; its result follows on the same line. */
static void run_word(const char *text)
{
    for (const char *c = text; !is_end(*c); c++)
        put_char(*c);
    put_char(':');
    for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        const char *rest = text;
        if (!take_name(&rest, words[i].name))
            continue;
        struct arguments arguments = {0};
        if (!read_arguments(rest, &arguments) || arguments.count < words[i].needed)
            break;
        words[i].act(&arguments, words[i].parameter);
        return;
    }
    put_text(" not understood\n");
}

static void run(const char *text)
{
    while (*text) {
        while (*text && is_end(*text))
            text++;
        if (*text)
            run_word(text);
        while (!is_end(*text))
            text++;
    }
}

void probe_main(uint64_t info)
{
    start_info = info;
    if (memory_read(info + START_INFO_MAGIC, 4) != START_INFO_MAGIC_VALUE)
        put_text("probe: no PVH start info\n");
    else
        run((const char *)memory_read(info + START_INFO_CMDLINE, 8));
    put_text("probe: end\n");
}
