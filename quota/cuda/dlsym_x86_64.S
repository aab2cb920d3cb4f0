/* dlsym and dlvsym, exported. Each asks lookup.c whether the answer is one of ours; if not, it jumps to libc's with the stack as it was, so that libc
 * sees the true caller: RTLD_NEXT and RTLD_DEFAULT mean what they always mean.
 *
 * struct corral_cuda_answer comes back in two registers: rax the address, rdx whether it is the answer (0: ask libc, whose function rax is).
 */
        .text

        .globl  dlsym
        .type   dlsym, @function
dlsym:
        .cfi_startproc
        endbr64
        pushq   %rdi
        .cfi_adjust_cfa_offset 8
        pushq   %rsi
        .cfi_adjust_cfa_offset 8
        subq    $8, %rsp
        .cfi_adjust_cfa_offset 8
        movq    24(%rsp), %rdx          /* the caller */
        call    corral_cuda_answer_dlsym
        addq    $8, %rsp
        .cfi_adjust_cfa_offset -8
        popq    %rsi
        .cfi_adjust_cfa_offset -8
        popq    %rdi
        .cfi_adjust_cfa_offset -8
        testq   %rdx, %rdx
        jnz     1f
        jmp     *%rax
1:      ret
        .cfi_endproc
        .size   dlsym, .-dlsym

        .globl  dlvsym
        .type   dlvsym, @function
dlvsym:
        .cfi_startproc
        endbr64
        pushq   %rdi
        .cfi_adjust_cfa_offset 8
        pushq   %rsi
        .cfi_adjust_cfa_offset 8
        pushq   %rdx
        .cfi_adjust_cfa_offset 8
        movq    24(%rsp), %rcx          /* the caller */
        call    corral_cuda_answer_dlvsym
        movq    %rdx, %rcx
        popq    %rdx
        .cfi_adjust_cfa_offset -8
        popq    %rsi
        .cfi_adjust_cfa_offset -8
        popq    %rdi
        .cfi_adjust_cfa_offset -8
        testq   %rcx, %rcx
        jnz     1f
        jmp     *%rax
1:      ret
        .cfi_endproc
        .size   dlvsym, .-dlvsym

        .section .note.GNU-stack,"",@progbits
